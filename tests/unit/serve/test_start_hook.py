"""What ``ray start`` calls before it starts its processes."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import types
from serve.start_hook import adjust

parameters = types.SimpleNamespace(ray_client_server_port=10001)
adjust(parameters, True)
print(parameters.ray_client_server_port)
"""
"""Run in a process of its own: the hook ties the process that calls it to its parent."""


@pytest.mark.parametrize(("launcher", "status", "printed"), [(None, 0, "None\n"), (1, 1, "")])
def test_no_client_server_and_no_cluster_without_its_starter(launcher: int | None, status: int, printed: str) -> None:
    """Ray's client server is left out; a starter that died meanwhile gets no cluster."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "STEELYARD_LAUNCHER": str(launcher or os.getpid())},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (status, printed), ran.stderr
