"""Finds processes of a running service by what their command lines say."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import psutil

from serve.cluster import processes_of
from serve.home import remembered_folder

if TYPE_CHECKING:
    from collections.abc import Collection

    from running import Service


def named(service: Service, name: str) -> list[psutil.Process]:
    """Return the service's processes whose command line contains ``name``."""
    folder = remembered_folder(service.home)
    assert folder is not None
    found = []
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):  # it may end while the list is read
            if process.status() != psutil.STATUS_ZOMBIE and name in " ".join(process.cmdline()):
                found.append(process)
    return found


def process_of(service: Service, name: str, *, beside: Collection[int] = (), within_s: float = 40.0) -> psutil.Process:
    """Wait for a process of that name that is not one of ``beside`` and return it."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for process in named(service, name):
            if process.pid not in beside:
                return process
        time.sleep(0.05)  # the service under test lives in real time
    msg = f"no new process named {name} appeared within {within_s} s"
    raise AssertionError(msg)
