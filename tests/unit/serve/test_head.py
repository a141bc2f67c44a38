"""The process that starts Ray's own ones: what can be shown without them."""

import os
import subprocess
import sys

import psutil
import pytest

from serve.head import LAUNCHER_VARIABLE, HeadOptions, command

OPTIONS = HeadOptions(
    folder="/run/ray", gcs_port=1, metrics_port=2, agent_port=3, cores=2, object_store_bytes=80_000_000
)
PROGRAM = """
import sys
import serve.head

serve.head.start = lambda options: print(options, sep="", flush=True)
serve.head.WAIT = "print('waits')"
serve.head.main(sys.argv[-1:])
"""
"""Run in a process of its own, without Ray: it ties itself to its parent and becomes another program."""


def run(launcher: int) -> subprocess.CompletedProcess[str]:
    """Return how the process ended that was told that ``launcher`` started it."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, command(OPTIONS)[-1]],
        env={**os.environ, LAUNCHER_VARIABLE: str(launcher)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_command_line_carries_every_option() -> None:
    """What the launcher chose is what the node is started with; afterwards only a process that waits is left."""
    ran = run(os.getpid())
    assert (ran.returncode, ran.stdout) == (0, f"{OPTIONS}\nwaits\n"), ran.stderr


def test_no_cluster_without_its_starter() -> None:
    """A starter that died meanwhile gets no cluster."""
    ran = run(1)
    assert (ran.returncode, ran.stdout) == (1, ""), ran.stderr


def test_the_end_of_one_process_ends_the_others() -> None:
    """The process that waits ends, with an error, as soon as one that it has inherited does."""
    program = (
        "import os, sys\nimport serve.head\n"
        "if os.fork() == 0:\n    os._exit(0)\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', serve.head.WAIT])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert ran.returncode == 1
    assert "a process of Ray has ended" in ran.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_the_process_that_waits_dies_with_its_starter() -> None:
    """Its parent-death signal outlives the change of program."""
    child = (
        "import os, subprocess, sys\nimport serve.head\n"
        "serve.head.start = lambda options: None\n"
        "serve.head.WAIT = 'import time; print(flush=True); time.sleep(30)'\n"
        "serve.head.main(sys.argv[-1:])"
    )
    starter = (
        "import os, subprocess, sys\n"
        f"os.environ[{LAUNCHER_VARIABLE!r}] = str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, sys.argv[-1]], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", starter, command(OPTIONS)[-1]],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    orphan = int(ran.stdout)
    for _ in range(200):
        if not lives(orphan):
            break
        subprocess.run(["sleep", "0.05"], check=True)  # noqa: S607 - real processes live in real time
    assert not lives(orphan)


def lives(pid: int) -> bool:
    """Return whether the process runs; one that has ended and that nobody has asked about does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
