"""What ``ray start`` calls before it starts its processes; imported there, so nothing heavy stands here."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def adjust(parameters: Any, head: bool) -> None:  # noqa: ARG001, FBT001 - Ray's own signature
    """Leave out Ray's client server, and tie ``ray start`` to the life of the process that started it.

    parameters: Ray's RayParams. The client server would listen for anyone who wants to run code here; the command
    line has no option against it. The tie is Linux's parent-death signal (prctl(2)), by which Ray ties its own
    processes to this one: a service killed without warning leaves no cluster. ``STEELYARD_LAUNCHER`` holds the id of
    the process that started it.
    """
    parameters.ray_client_server_port = None
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ["STEELYARD_LAUNCHER"]):
            raise SystemExit(1)
