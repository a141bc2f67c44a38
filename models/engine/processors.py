"""Keeps threads that answer off each other's processors while something loads, and loads off half of the machine.

Linux places a thread when it wakes up, on an idle processor if there is one. While releases load there is none, and two
images that are answered side by side may share one processor for as long as they take, while a load has the other: how
far a load gives way matters only on the processor where it is. So meanwhile each call that runs on one thread takes a
processor of its own, the one where it is if nobody else has taken it. On a machine with more processors than work that
is where the kernel would have kept it anyway.

Loads take turns: at most half of the processors load at once, so that an image finds one that does not. On OpenVINO
the first compiles for the others, so that together they take hardly longer.

Who has taken what is told by locks on a file, one byte a processor (open file description locks, ``fcntl(2)``): they
work across processes, and end with whoever holds them. Services with files of their own do not see each other. A thread
that has taken a processor keeps to those that it might use then, should its process be given more of them later.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import logging
import os
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

MOST_TRIES: Final = 8
"""Processors that a call tries to take, each of which costs about a microsecond."""
LOADING: Final = 1 << 20
"""The byte that loads lock together; those of the processors lie below, those of the turns follow."""
TURN_DEADLINE_S: Final = 15.0
"""Longest wait for a turn: a load that hangs must not keep the others from loading."""
TURN_POLL_S: Final = 0.02
_FLOCK: Final = "hhqqi4x"
"""struct flock of Linux on 64 bits: type, whence, start, length, pid."""


class Processors:
    """The processors of this machine, as all engines see them that were given the same file. Safe from any thread."""

    def __init__(self, file: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Take nothing yet.

        file: on a disk of this machine, made where it is not; None takes no processors, nor does any system but Linux.
        clock: seconds.
        """
        self._clock = clock
        self._file = file if sys.platform == "linux" else None
        self._here = threading.local()

    @contextlib.contextmanager
    def loading(
        self, abandoned: threading.Event | None = None, *, deadline_s: float = TURN_DEADLINE_S
    ) -> Iterator[None]:
        """Say meanwhile, to every engine of the machine, that something loads or is freed; wait for a turn before.

        abandoned: set when it shall wait no more, since nobody wants the load, or all ends.
        deadline_s: longest wait.
        """
        held = self._open()
        if held is None:
            yield
            return
        turn: int | None = None
        try:
            with contextlib.suppress(OSError):  # a file system without such locks
                turn = self._turn(held, abandoned or threading.Event(), deadline_s)
                _lock(held, fcntl.F_RDLCK, LOADING)
            yield
        finally:
            # Said, too, lest a child that was forked meanwhile keeps the locks.
            for byte in (LOADING, turn):
                if byte is not None:
                    with contextlib.suppress(OSError):
                        _lock(held, fcntl.F_UNLCK, byte)
            os.close(held)

    def _turn(self, held: int, abandoned: threading.Event, deadline_s: float) -> int | None:
        end = self._clock() + deadline_s
        turns = [LOADING + 1 + each for each in range(max(1, len(os.sched_getaffinity(0)) // 2))]
        while True:
            for turn in turns:
                if _lock(held, fcntl.F_WRLCK, turn):
                    return turn
            if self._clock() > end:
                logger.info("others have loaded for %.0f s; this works beside them", deadline_s)
                return None
            if abandoned.wait(TURN_POLL_S):
                return None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Keep the calling thread meanwhile on a processor that no other call has taken, if anything loads.

        Threads that it starts meanwhile would stay there for good, so it must start none. Where all processors are
        taken it runs on any of them.
        """
        held = self._descriptor()
        if held is None or not _is_loading(held):
            yield
            return
        allowed = os.sched_getaffinity(0)
        taken = next((each for each in _nearest(allowed) if _lock(held, fcntl.F_WRLCK, each)), None)
        if taken is None:
            yield
            return
        try:
            with contextlib.suppress(OSError):  # it was taken from this process a moment ago
                os.sched_setaffinity(0, {taken})
            yield
        finally:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, allowed)
            _lock(held, fcntl.F_UNLCK, taken)

    def _descriptor(self) -> int | None:
        """Return the calling thread's description of the file, whose locks keep other threads off, too."""
        if self._file is None:
            return None
        mine: _Description | None = getattr(self._here, "description", None)
        if mine is None:
            held = self._open()
            if held is None:
                return None
            mine = self._here.description = _Description(held)
        return mine.number

    def _open(self) -> int | None:
        file = self._file
        if file is None:
            return None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            logger.warning("calls take no processors of their own while something loads: %s", error)
            self._file = None
            return None


class _Description:
    """Closes its file with the thread that owns it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def _lock(held: int, kind: int, byte: int) -> bool:
    """Lock one byte for ``kind``, or unlock it; return False where somebody else has it. Raises OSError."""
    try:
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_loading(held: int) -> bool:
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, LOADING, 1, 0)
    try:
        answer = fcntl.fcntl(held, fcntl.F_OFD_GETLK, question)
    except OSError:
        return False
    kind: Any = struct.unpack(_FLOCK, answer)[0]
    return bool(kind != fcntl.F_UNLCK)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _nearest(allowed: set[int]) -> list[int]:
    """Return some of the processors ``allowed``: the one where the thread is, then those that follow it in turn."""
    here = _library().sched_getcpu()
    return sorted(allowed, key=lambda each: (each < here, each))[:MOST_TRIES]
