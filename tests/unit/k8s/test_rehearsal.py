"""The rehearsal follows the Dockerfile: what changes there changes here, or is refused."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import rehearse
from k8s_folder import K8S, ROOT, replace
from rehearsal import context, plan, sandbox

if TYPE_CHECKING:
    from pathlib import Path

DECLARED = ("/var/lib/steelyard", "/tmp")  # noqa: S108 - as the image declares them
SHARED = "/dev/shm"  # noqa: S108 - likewise
GOOD = {
    "user": 10001,
    "capabilities": "0000000000000000",
    "ready_s": 20.0,
    "without_key": 401,
    "status": 200,
    "answer": {"images": [{"results": [{"name": name} for name in sorted(rehearse.SEEN)]}]},
    "exit": 0,
    "writable": [*DECLARED, SHARED],
}


def test_the_plan_is_the_dockerfiles() -> None:
    """Command, user, variables, health check, port and folders come out of the Dockerfile as they stand in it."""
    found = plan.read_plan(K8S / "Dockerfile")

    assert found.command == ("steelyard", "serve", "--host", "0.0.0.0")  # noqa: S104 - the image's
    assert (found.user, found.group, found.port, found.workdir) == (10001, 10001, 8000, "/var/lib/steelyard")
    assert found.writable == DECLARED
    assert found.environment["STEELYARD_HOME"] == "/var/lib/steelyard"
    assert found.healthcheck[-1] == "http://127.0.0.1:8000/healthz/ready"
    assert {"serve", "models", "pyproject.toml", "requirements.lock"} <= set(found.context)
    assert len(found.left_out) == len(plan.NOT_REHEARSED)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("USER 10001:10001", "RUN chmod -R a+w /usr/local\nUSER 10001:10001", "does not know this step"),
        ("RUN pip install --prefix=/install --no-deps .", "RUN pip install .", "does not know this step"),
        ("FROM runtime AS cpu", "FROM runtime AS cpu\nRUN /lister/bin/other", "expects one step"),
    ],
)
def test_an_unknown_step_is_refused(folder: Path, old: str, new: str, words: str) -> None:
    """A step that the rehearsal neither does nor names as left out stops it, so that it cannot fall behind."""
    replace(folder / "Dockerfile", old, new)

    with pytest.raises(plan.DriftError, match=words):
        plan.read_plan(folder / "Dockerfile")


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("serve/app.py", False),
        ("models/demo/golden/tray-1.jpg", False),
        ("models/demo/weights/checkout-2.pt", True),
        ("models/demo/weights", True),
        ("models/engine/deep/weights.onnx", True),
        ("serve/__pycache__/app.cpython-311.pyc", True),
        ("tests/unit/conftest.py", True),
        ("requirements.lock", False),
        (".git/config", True),
        ("k8s/secrets/postgres_password", True),
    ],
)
def test_the_ignore_file_keeps_weights_and_secrets_away(path: str, ignored: bool) -> None:  # noqa: FBT001
    """The builder gets the sources, and nothing that is weights, a secret, history or a leftover."""
    rules = context.read_rules((K8S / "Dockerfile.dockerignore").read_text(encoding="utf-8"))

    assert context.is_ignored(path, rules) is ignored


def test_the_last_rule_decides() -> None:
    """As in Docker: a later rule takes back an earlier one, for a folder and all below it."""
    rules = ["*", "!a", "a/b", "!a/b/c.txt"]

    assert [context.is_ignored(path, rules) for path in ("a/x", "a/b/x", "a/b/c.txt", "d")] == [
        False,
        True,
        False,
        True,
    ]


def test_the_context_is_what_a_build_sees(tmp_path: Path) -> None:
    """Copied are the files that COPY names, in their places, and no weights."""
    rules = context.read_rules((K8S / "Dockerfile.dockerignore").read_text(encoding="utf-8"))
    count = context.copy_context(ROOT, ["pyproject.toml", "models"], rules, tmp_path)

    assert count == sum(path.is_file() for path in tmp_path.rglob("*"))
    assert (tmp_path / "models" / "engine" / "engine.py").is_file()
    assert not list(tmp_path.rglob("*.pt"))


def test_the_tree_is_written_as_a_script_that_a_shell_reads() -> None:
    """The mounts and the change of user are one script, sound for a shell, with every path quoted."""
    tree = sandbox.Sandbox("/r o", {"/in": "/out'side"}, {"/scratch": None, "/home": "/there"}, 7, 8)
    command = tree.enter(["say", "a b"], {"A": "1 2"}, "/home")

    done = subprocess.run(["/bin/sh", "-n", "-c", command[-1]], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--net" in command
    assert "--reuid=7 --regid=8 --clear-groups --no-new-privs --bounding-set=-all" in command[-1]
    assert command[-1].splitlines()[-2].startswith("mount -o remount,ro ")


def test_what_the_image_promises_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    """A service that did all it should passes, and is described."""
    rehearse.judge(plan.read_plan(K8S / "Dockerfile"), GOOD)

    assert "read-only tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user": 0}, "user 0"),
        ({"capabilities": "00000000a80425fb"}, "capabilities"),
        ({"without_key": 200}, "without a key"),
        ({"status": 503}, "with a key"),
        ({"answer": {"images": [{"results": []}]}}, "it saw"),
        ({"writable": [*DECLARED, SHARED, "/etc"]}, "writable were"),
        ({"writable": [DECLARED[0], SHARED]}, "writable were"),
        ({"exit": -9}, "ended with -9"),
    ],
)
def test_what_the_image_must_not_do_is_refused(change: dict[str, object], words: str) -> None:
    """Each broken promise fails the rehearsal by name."""
    with pytest.raises(rehearse.RehearsalError, match=words):
        rehearse.judge(plan.read_plan(K8S / "Dockerfile"), GOOD | change)
