"""What the Dockerfile says of the image, and which of its steps are rehearsed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from checks.dockerfile import read_stages

if TYPE_CHECKING:
    from pathlib import Path

NOT_REHEARSED: Final = {
    r"apt-get update && apt-get install .*": "Debian's packages, the user and the removal of pip need the base image",
    r"pip install --prefix=/install .* -r requirements\.lock": "the environment here has this lock installed",
    r"python -m venv /lister .*": "the development environment has the lister",
}
"""Steps that are left out, as patterns, and why."""


class DriftError(Exception):
    """The Dockerfile does something that the rehearsal does not know."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The image's target ``cpu``."""

    environment: dict[str, str]
    user: int
    group: int
    writable: tuple[str, ...]
    """Folders that VOLUME declares."""
    workdir: str
    command: tuple[str, ...]
    healthcheck: tuple[str, ...]
    port: int
    context: tuple[str, ...]
    """Files and folders that COPY takes from the repository."""
    pin_check: str
    """The shell text that refuses a base without a digest."""
    install: tuple[str, ...]
    """The command that installs the sources."""
    listing: tuple[str, ...]
    """The command that lists the contents."""
    left_out: tuple[str, ...]
    """Why steps are not rehearsed."""


def read_plan(dockerfile: Path) -> Plan:
    """Return the plan of the target ``cpu``. Raises DriftError for a step that is neither rehearsed nor listed."""
    stages = read_stages(dockerfile.read_text(encoding="utf-8"))
    image, build, listed = stages["cpu"], stages["build-cpu"], stages["listed-cpu"]
    runs = [
        arguments
        for name in ("cpu", "build-cpu", "listed-cpu", "lister")
        for instruction, arguments in stages[name].steps
        if instruction == "RUN"
    ]
    kinds: dict[str, list[str]] = {"pin": [], "install": [], "list": []}
    reasons: list[str] = []
    for run in dict.fromkeys(" ".join(each.split()) for each in runs):
        reason = next((why for pattern, why in NOT_REHEARSED.items() if re.fullmatch(pattern, run)), None)
        if run.startswith("case "):
            kinds["pin"].append(run)
        elif run.startswith("pip install ") and run.endswith(" --no-deps ."):
            kinds["install"].append(run)
        elif run.startswith("/lister/bin/"):
            kinds["list"].append(run)
        elif reason is not None:
            reasons.append(f"{run.split(' && ')[0]}: {reason}")
        else:
            msg = f"the rehearsal does not know this step of the Dockerfile: RUN {run}"
            raise DriftError(msg)
    for kind, found in kinds.items():
        if len(found) != 1:
            msg = f"the rehearsal expects one step of the kind {kind!r} in the Dockerfile and finds {len(found)}"
            raise DriftError(msg)
    user, _, group = (image.last("USER") or "").partition(":")
    copied = [
        source
        for stage in (build, listed)
        for instruction, arguments in stage.steps
        if instruction == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    return Plan(
        environment=image.environment(),
        user=int(user),
        group=int(group),
        writable=tuple(image.words("VOLUME")),
        workdir=image.last("WORKDIR") or "/",
        command=tuple(image.words("CMD")),
        healthcheck=tuple(image.words("HEALTHCHECK")),
        port=int(image.last("EXPOSE") or 0),
        context=tuple(dict.fromkeys(copied)),
        pin_check=kinds["pin"][0],
        install=tuple(shlex.split(kinds["install"][0])),
        listing=tuple(shlex.split(kinds["list"][0])),
        left_out=tuple(reasons),
    )
