"""A service that is killed without warning."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import running

from models import demo
from serve.cluster import processes_of
from serve.home import remembered_folder

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service


AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Processes of Ray's that notice the death of their node only after a minute."""


def test_a_service_killed_without_warning_leaves_no_process(tmp_path: Path, service: Service) -> None:
    """The kernel ends what answers requests at once; Ray's idle agents are ended by the next start at the latest."""
    home = tmp_path / "home"
    killed = running.start(home, tmp_path / "first.log", "--model", f"tray={demo.weights_path(1)}")
    folder = remembered_folder(home)
    assert folder is not None
    processes = processes_of(folder)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(timeout=10)
    deadline = time.monotonic() + 20.0
    while {each.name() for each in running.running_ones(processes)} - AGENTS:
        assert time.monotonic() < deadline, running.running_ones(processes)
        time.sleep(0.2)  # the processes under test live in real time
    again = running.start(home, tmp_path / "second.log", "--model", "tray")
    try:
        assert again.detect()["metadata"]["version"] == "1"
        assert running.running_ones(processes) == []
        assert not folder.exists()
    finally:
        running.stop(again)
    assert service.detect()["images"][0]["results"]
