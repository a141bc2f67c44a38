"""Which processes belong to a cluster, and that they are ended."""

import os
import subprocess
import sys
from pathlib import Path

from serve.environment import token_path
from serve.processes import end, processes_of

SLEEPER = "import subprocess, sys, time; print(flush=True); time.sleep(60)"
PARENT = (
    "import os, subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


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
