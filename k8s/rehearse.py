"""Do what the image does, without Docker; ``make rehearse``. Linux, as root, with the development environment.

The steps are read from the Dockerfile: the sources are installed from what a build would see, the contents are listed,
then the image's command runs as the image's user in a read-only tree in which only the declared folders can be written,
in a network of its own. A version is registered there, and the sample tray is sent as a client sends it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from checks.findings import find_tool
from rehearsal.context import copy_context, read_rules
from rehearsal.plan import DriftError, Plan, read_plan
from rehearsal.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
VENV: Final = Path(sys.prefix)
WEIGHTS: Final = ROOT / "models" / "demo" / "weights"
TRAY: Final = ROOT / "models" / "demo" / "sample-tray.jpg"
READY_S: Final = 150.0
NEEDED: Final = ("unshare", "setpriv", "chroot", "mount", "ip", "wget")
SEEN: Final = {"apple", "banana", "orange"}
"""Some of what is on the sample tray."""


class RehearsalError(Exception):
    """A step did not do what it does in the image."""


def main() -> int:
    """Rehearse and say what was seen; return 1 where a step failed, 0 also where this machine cannot rehearse."""
    started = time.monotonic()
    reason = cannot()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    try:
        plan = read_plan(HERE / "Dockerfile")
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
            rehearse(plan, Path(folder))
    except (DriftError, RehearsalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for reason in plan.left_out:
        print(f"not rehearsed: {reason}")
    print(f"rehearsed in {time.monotonic() - started:.0f} s")
    return 0


def cannot() -> str | None:
    """Return why this machine cannot rehearse, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the image's user and its read-only tree need Linux and root"
    missing = [name for name in NEEDED if find_tool(name) is None]
    if missing:
        return f"there is no {', '.join(missing)} here"
    if subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False).returncode:  # noqa: S607
        return "this machine lets nobody make namespaces"
    return None


def rehearse(plan: Plan, folder: Path) -> None:
    """Rehearse ``plan`` with ``folder`` to work in. Raises RehearsalError."""
    refuse_loose_base(plan)
    layer = install(plan, folder)
    list_contents(plan, folder)
    sandbox, environment = build_tree(plan, layer, folder)
    key = fill(plan, sandbox, environment)
    judge(plan, serve(plan, sandbox, environment, key))


def refuse_loose_base(plan: Plan) -> None:
    """Run the step that refuses a base without a digest, with and without one."""
    digest = "sha256:" + "0" * 64
    for image, allowed, expected in (
        (f"python:3.11@{digest}", "refused", 0),
        ("python:3.11", "allowed", 0),
        ("python:3.11", "refused", 1),
        ("python:3.11@sha256:0000", "refused", 1),
    ):
        variables = {"PATH": os.defpath, "PYTHON_IMAGE": image, "UNPINNED_BASE": allowed}
        done = run(["/bin/sh", "-c", plan.pin_check], env=variables, check=False)
        if done.returncode != expected:
            msg = f"a base {image} ({allowed}) ended with {done.returncode} instead of {expected}"
            raise RehearsalError(msg)
    print("base: one without a digest is refused")


def install(plan: Plan, folder: Path) -> Path:
    """Install the sources as the image does, from what a build sees; return the folder that is the image's layer."""
    source, layer = folder / "src", folder / "install"
    rules = read_rules((HERE / "Dockerfile.dockerignore").read_text(encoding="utf-8"))
    count = copy_context(ROOT, plan.context, rules, source)
    weights = [str(path) for path in source.rglob("*") if path.suffix in {".pt", ".onnx", ".safetensors"}]
    if weights:
        msg = f"weights would be built into the image: {', '.join(weights)}"
        raise RehearsalError(msg)
    words = [word.replace("/install", str(layer)) for word in plan.install[1:]]
    # The builder's environment holds no Steelyard. This one does, and pip would remove it first.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, *words, "--ignore-installed"], cwd=source)
    packages = layer / Path(sysconfig.get_path("purelib")).relative_to(VENV)
    if not (packages / "serve" / "cli.py").is_file():
        msg = f"the sources were not installed below {layer.name}"
        raise RehearsalError(msg)
    print(f"install: {count} files of the context, no weights")
    return layer


def list_contents(plan: Plan, folder: Path) -> None:
    """List the contents as the image's builder does, and see that the list names what runs."""
    tool = find_tool(Path(plan.listing[0]).name)
    if tool is None:
        print("skipped: contents were not listed: pip install cyclonedx-bom")
        return
    target = folder / "sbom.json"
    places = {"/sbom.cdx.json": str(target), "/usr/local/bin/python": sys.executable}
    run([tool, *(places.get(word, word) for word in plan.listing[1:])])
    names = {component["name"].lower() for component in json.loads(target.read_text())["components"]}
    missing = {"ray", "torch", "openvino", "fastapi"} - names
    if missing:
        msg = f"the list of contents does not name {', '.join(sorted(missing))}"
        raise RehearsalError(msg)
    print(f"contents: {len(names)} packages listed")


def build_tree(plan: Plan, layer: Path, folder: Path) -> tuple[Sandbox, dict[str, str]]:
    """Return the tree, with the layer in place of the checkout's sources, and the image's environment in it."""
    home, root = folder / "home", folder / "root"
    home.mkdir()
    root.mkdir()
    os.chown(home, plan.user, plan.group)
    packages = "/install" / Path(sysconfig.get_path("purelib")).relative_to(VENV)
    read_only = {
        "/install": str(layer),
        str(VENV): str(VENV),
        sys.base_prefix: sys.base_prefix,
        "/rehearsal/inside.py": str(HERE / "rehearsal" / "inside.py"),
        "/rehearsal/tray.jpg": str(TRAY),
        "/rehearsal/weights": str(WEIGHTS),
    }
    # Python itself may lie below a system's folder, which is mounted as a whole.
    read_only = {path: source for path, source in read_only.items() if not path.startswith(("/usr", "/etc"))}
    writable = {path: None if path == "/tmp" else str(home) for path in plan.writable}  # noqa: S108 - the image's
    environment = {
        **plan.environment,
        "PATH": f"/install/bin:{VENV}/bin:/usr/local/bin:/usr/bin:/bin",
        # The checkout's sources are not in the tree: what is imported is what was installed.
        "PYTHONPATH": str(packages),
    }
    return Sandbox(str(root), read_only, writable, plan.user, plan.group), environment


def fill(plan: Plan, sandbox: Sandbox, environment: Mapping[str, str]) -> str:
    """Register a version and make keys, as an operator does with the image; return a key to detect with."""
    weights = f"/rehearsal/weights/{max(path.name for path in WEIGHTS.glob('*.pt'))}"
    steps = (
        ["steelyard", "register", weights, "--model", "checkout", "--promote"],
        ["steelyard", "access", "add", "operator", "--scope", "admin"],
        ["steelyard", "access", "add", "rehearsal", "--scope", "predict"],
    )
    for step in steps:
        done = run(sandbox.enter(step, environment, plan.workdir))
        key = done.stdout.strip().splitlines()[-1]
    print("registry: a version registered in the read-only tree, keys made")
    return key


def serve(plan: Plan, sandbox: Sandbox, environment: Mapping[str, str], key: str) -> dict[str, Any]:
    """Run the image's command in the tree and return what was seen there."""
    wanted = {
        "command": plan.command,
        "healthcheck": plan.healthcheck,
        "port": plan.port,
        "key": key,
        "picture": "/rehearsal/tray.jpg",
        "log": "/tmp/service.log",  # noqa: S108 - the sandbox's own
        "deadline_s": READY_S,
        "places": [*plan.writable, "/install/bin", str(VENV), "/dev/shm", "/usr/local", "/etc"],  # noqa: S108
    }
    program = [sys.executable, "/rehearsal/inside.py"]
    done = run(sandbox.enter(program, environment, plan.workdir), stdin=json.dumps(wanted))
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def judge(plan: Plan, seen: Mapping[str, Any]) -> None:
    """Refuse what the image must not do, or does not. Raises RehearsalError."""
    writable = {*plan.writable, "/dev/shm"}  # noqa: S108 - shared memory, as every container has it
    names = {box["name"] for image in seen["answer"].get("images", ()) for box in image["results"]}
    problems = [
        (seen["user"] != plan.user, f"it ran as user {seen['user']}"),
        (int(seen["capabilities"], 16) != 0, f"it had capabilities {seen['capabilities']}"),
        (seen["without_key"] != 401, f"without a key it answered {seen['without_key']}"),  # noqa: PLR2004
        (seen["status"] != 200, f"with a key it answered {seen['status']}: {seen['answer']}"),  # noqa: PLR2004
        (not names >= SEEN, f"it saw {sorted(names)} on the tray"),
        (set(seen["writable"]) != writable, f"writable were {seen['writable']}"),
        (seen["exit"] != 0, f"it ended with {seen['exit']} on SIGTERM"),
    ]
    wrong = [words for is_wrong, words in problems if is_wrong]
    if wrong:
        raise RehearsalError("; ".join(wrong))
    print(f"service: healthy after {seen['ready_s']} s as user {plan.user} in a read-only tree, 401 without a key")
    print(f"service: saw {', '.join(sorted(names))}; ended with 0 on SIGTERM")


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end, at most five minutes. Raises RehearsalError where ``check`` and it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the Dockerfile's steps and our own
            command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired as error:
        msg = f"{shutil.which(command[0]) or command[0]} took longer than five minutes"
        raise RehearsalError(msg) from error
    if check and done.returncode != 0:
        msg = f"{' '.join(command)[-200:]} ended with {done.returncode}: {(done.stderr or done.stdout)[-3000:].strip()}"
        raise RehearsalError(msg)
    return done


if __name__ == "__main__":
    sys.exit(main())
