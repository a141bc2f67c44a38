"""Work that may wait gives way to the threads that answer images."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from models.engine.spare_time import SpareTime

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

NICENESS: Final = 5
"""A third of the processor time of a thread that answers, where both want it; all of it where the others rest."""
LOWEST: Final = 19
SPARE: Final = 0.25
"""Least share of the machine's processors that is spare, 0 to 1, for work that gets nothing but that.

A load of a small network takes 2.5 seconds of one processor: five on each of two where a quarter is spare.
"""


def give_way() -> None:
    """Lower the calling thread's priority for good; threads that it starts inherit it. Idempotent.

    Only Linux has priorities of threads; elsewhere, and where the system refuses, nothing changes.
    """
    _lower(NICENESS)


def stand_back() -> None:
    """Let the calling thread run only where no other wants the processor, for good, its children too. Idempotent.

    Linux's SCHED_IDLE (sched(7)): whoever answers takes the processor from it at once instead of at the end of its
    turn, which a niceness alone does not give. It starves on a machine that is busy throughout, and unprivileged
    threads cannot leave it. The niceness beside it only makes the kernel count its time as ``nice``.
    """
    if sys.platform == "linux":
        _lower(LOWEST)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def _lower(niceness: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


MACHINE: Final = SpareTime()


class Background:
    """Runs work beside what answers, as far back as the machine lets it come through."""

    def __init__(self, spare: Callable[[], float] | None = None) -> None:
        """Run nothing yet. spare: the share of the processors that is spare, 0 to 1, may block; None measures it."""
        self._spare = spare or MACHINE.share

    def give_way(self) -> None:
        """Lower the calling thread for good: to what is spare where that is enough, else by a niceness."""
        if self._spare() >= SPARE:
            stand_back()
        else:
            give_way()

    def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Return what ``work`` returns or raise what it raises, from a lowered thread of its own; blocks.

        A thread of its own each time, because a lowered thread cannot rise again when the machine has become busy.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                self.give_way()
                done.set_result(work(*args, **named))
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                done.set_exception(error)

        thread = threading.Thread(target=run, name="background", daemon=True)
        thread.start()
        thread.join()
        return done.result()
