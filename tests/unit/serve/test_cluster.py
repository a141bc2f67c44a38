"""Starting and ending a Ray of our own: what can be shown without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve.cluster import end, main, make_folder, processes_of, reason_of
from serve.environment import token_path

SLEEPER = "import subprocess, sys, time; print(flush=True); time.sleep(60)"
PARENT = (
    "import os, subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


def test_folders_are_private_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the temporary folder lies, unix sockets fit below the one that is made."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = make_folder()
    try:
        assert len(str(folder)) <= 31
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()


def test_a_clusters_processes_are_found_and_ended_and_no_others(tmp_path: Path) -> None:
    """The environment tells, and descendants count even without it."""
    mark = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token_path(tmp_path))}
    foreign = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE)
    ours = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=mark)
    try:
        assert ours.stdout is not None
        assert foreign.stdout is not None
        child = int(ours.stdout.readline())
        foreign.stdout.readline()
        found = processes_of(tmp_path)
        assert {process.pid for process in found} == {ours.pid, child}
        end(found)
        assert not [process for process in found if process.is_running() and process.status() != "zombie"]
        assert foreign.poll() is None
    finally:
        for process in (ours, foreign):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Failed 3 times.\nRuntimeError: Traceback:\nmodels.errors.ReleaseRejectedError: it finds no box\n",
            "it finds no box",
        ),
        ("Deployment is waiting for 2 CPUs\n", "Deployment is waiting for 2 CPUs"),
        ("", "no reason was given"),
    ],
)
def test_the_reason_is_told_without_its_traceback(message: str, reason: str) -> None:
    """Ray Serve wraps an error's words into two tracebacks; people read the words."""
    assert reason_of(message) == reason


def test_the_environment_of_pods_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed may be put into a manifest."""
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "s3cret")
    monkeypatch.setenv("STEELYARD_WEBHOOK_SECRET", "s3cret")
    monkeypatch.setenv("STEELYARD_HOST", "0.0.0.0")  # noqa: S104
    monkeypatch.setattr("sys.argv", ["cluster", "--print-env"])
    main()
    printed = capsys.readouterr().out
    assert "s3cret" not in printed
    assert "RAY_SERVE_ENABLE_HA_PROXY=1\n" in printed
    assert "STEELYARD_HOST=0.0.0.0\n" in printed
