"""What a sandboxed child says: read against a deadline, and taken as data that may be hostile."""

from __future__ import annotations

import json
import os
import selectors
import time
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LINE = 8 * 1024 * 1024
MOST_LEFT_BEHIND = 1024 * 1024
"""Bytes that are read after the child's end: the most that a pipe holds on Linux."""

POLL_S = 0.05
"""Time between two looks whether a silent child has ended (seconds)."""

_CHUNK = 64 * 1024


class Listener:
    """Makes lines out of what the child writes and keeps what they say. Nothing in them can make it fail."""

    def __init__(self, progress: Callable[[str, float], None] | None) -> None:
        """Hand stages and fractions (0 to 1) to ``progress``."""
        self.outcome: dict[str, Any] | None = None
        self.network: str | None = None
        self._progress = progress
        self._rest = bytearray()

    def hear(self, data: bytes) -> None:
        """Take the next bytes, of any length."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._line(bytes(self._rest) + line)
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            self._rest.clear()

    def _line(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        if isinstance(message.get("result"), dict) or isinstance(message.get("error"), str):
            self.outcome = message
        elif self.network is None and isinstance(message.get("network"), str):
            self.network = message["network"]
        elif self._progress is not None and isinstance(message.get("stage"), str):
            fraction = message.get("fraction")
            # A comparison, which neither NaN nor an integer beyond every float can break.
            if isinstance(fraction, int | float) and fraction == fraction:  # noqa: PLR0124 - false for NaN only
                self._progress(message["stage"][:60], float(min(max(fraction, 0), 1)))


def read_until_end(stdout: IO[bytes], pid: int, deadline: float) -> Iterator[bytes]:
    """Yield what the child writes, until the pipe ends, the child has ended and left it empty, or the deadline.

    The pipe alone would not do: a process that the child started may hold it open for ever, or write for ever.

    Args:
        stdout: the reading end of the child's pipe.
        pid: the child's, not reaped before this returns.
        deadline: on ``time.monotonic``'s clock (seconds).

    """
    left_behind = MOST_LEFT_BEHIND
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            ended = _ended(pid)  # asked before the pipe, so that nothing written until then is missed
            if selector.select(0 if ended else min(left, POLL_S)):
                data = os.read(stdout.fileno(), _CHUNK)
                if not data:
                    return
                yield data
                left_behind -= len(data) if ended else 0
                if left_behind <= 0:
                    return
            elif ended:
                return


def wait_until(pid: int, deadline: float) -> bool:
    """Return whether the child ends before the deadline."""
    while not _ended(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _ended(pid: int) -> bool:
    # Not reaped: until the parent does that, neither the child's id nor its group's can name another process.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
