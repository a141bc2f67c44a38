"""How many bytes the images that a replica decodes at once may take.

As many images decode at once as there are lanes or decoder threads, each of up to some hundred MiB: without a bound, a
few large photographs that meet would take more memory than the replica has. What an image takes is known from its
header. Images below the bound meet nobody here; the others wait on their thread, in order of arrival, until their
deadline.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from models.engine.batch import late

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class DecodeBudget:
    """Shared by the threads of all engines of a replica."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let images of ``total`` >= 1 bytes together decode at once; ``clock`` is that of the deadlines."""
        self._total = total
        self._clock = clock
        self._used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Return how many bytes the images that are being decoded take."""
        return self._used

    @property
    def waiting(self) -> int:
        """Return how many threads wait."""
        return len(self._waiting)

    @contextmanager
    def hold(self, size: int, deadline: float) -> Iterator[None]:
        """Hold ``size`` >= 0 bytes while the block runs; one image larger than the whole budget goes alone.

        Waits until ``deadline`` on the clock at most, then raises DeadlineExceededError.
        """
        self._take(size, deadline)
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def _take(self, size: int, deadline: float) -> None:
        with self._changed:
            if self._waiting or not self._fits(size):
                self._wait(size, deadline)
            self._used += size

    def _wait(self, size: int, deadline: float) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            while self._waiting[0] is not ticket or not self._fits(size):
                remaining = deadline - self._clock()
                if remaining <= 0.0:
                    raise late()
                self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._total
