"""How much of this machine's processors nobody needs, as the kernel counts it."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S: Final = 0.2
"""Shortest time over which a share is told (seconds): twenty ticks of the kernel's clock on each processor."""
FRESH_S: Final = 2.0
"""How long a share is told again (seconds)."""


class Ticks(NamedTuple):
    """Processor time since the machine started (seconds): ``spare`` was idle or spent by threads that give way."""

    spare: float
    total: float


def read_ticks() -> Ticks:
    """Return the ticks of the processors that this process may use.

    What runs at a positive niceness is counted apart from the rest (``nice`` in proc_stat(5)), so that a load does not
    take its own time for somebody else's.
    """
    every = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    spare = total = 0.0
    # A container may be shown other processors than its affinity names.
    for each in [every[number] for number in usable if number < len(every)] or every:
        spare += each.idle + getattr(each, "iowait", 0.0) + getattr(each, "nice", 0.0)
        total += sum(each) - getattr(each, "guest", 0.0) - getattr(each, "guest_nice", 0.0)
    return Ticks(spare, total)


class SpareTime:
    """Tells which share of the processors was spare of late. Safe to use from several threads."""

    def __init__(
        self,
        read: Callable[[], Ticks] = read_ticks,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Know nothing yet. read: ticks so far; clock: seconds, monotonic; sleep: waits on it."""
        self._read, self._clock, self._sleep = read, clock, sleep
        self._lock = threading.Lock()
        self._ticks: Ticks | None = None
        self._told: tuple[float, float] | None = None

    def share(self) -> float:
        """Return the spare share, 0 to 1, as it was told last where that is not FRESH_S ago; else look for LOOK_S."""
        with self._lock:
            if self._told is not None and self._clock() - self._told[0] < FRESH_S:
                return self._told[1]
            before = self._read()
            self._sleep(LOOK_S)
            return self._tell(before)

    def glance(self) -> float:
        """Return the spare share, 0 to 1, since the last call of either kind, 0 at the first; wait for nothing.

        Whoever calls it once a second spares ``share`` its looks.
        """
        with self._lock:
            if self._ticks is None:
                self._ticks = self._read()
                return 0.0
            return self._tell(self._ticks)

    def _tell(self, before: Ticks) -> float:
        self._ticks = self._read()
        total = self._ticks.total - before.total
        share = min(1.0, max(0.0, (self._ticks.spare - before.spare) / total)) if total > 0.0 else 0.0
        self._told = self._clock(), share
        return share
