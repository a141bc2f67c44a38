"""The processes of one cluster on this machine: found by what they carry, and ended."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

import psutil

from serve.environment import token_path

KILL_DEADLINE_S: Final = 1.0
_TITLE: Final = "ray::"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes of the cluster whose folder is ``folder``, but for this one.

    Their environment names its token; descendants count; and some of Ray's overwrite the memory that holds their
    environment with their title, but keep log files open in the folder.
    """
    token = str(token_path(folder))
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid():
                continue
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == token or _writes_into(process, folder):
                found.add(process)
                found.update(process.children(recursive=True))
    return list(found)


def _writes_into(process: psutil.Process, folder: Path) -> bool:
    titled = process.name().startswith(_TITLE)
    return titled and any(Path(file.path).is_relative_to(folder) for file in process.open_files())


def end(processes: list[psutil.Process]) -> None:
    """Kill those of ``processes`` that still run and wait until they are gone, KILL_DEADLINE_S at most."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + KILL_DEADLINE_S
    while any(_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
