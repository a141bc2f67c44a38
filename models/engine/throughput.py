"""How many images a second an engine can answer, learnt from the batches that it runs anyway."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY_S: Final = 30.0
"""What a batch told counts for about so long (seconds): while others start on its cores, an engine is slow, and soon
as fast again."""
MOST_WEIGHT: Final = 0.1
"""Of a batch after a long silence."""
LEAST_BATCHES: Final = 3
"""A first image may be a slow one: its shape is new."""


class Throughput:
    """Belongs to one event loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet. clock: seconds, monotonic."""
        self._clock = clock
        self._batch_s = _Average()
        self._shared: dict[int, _Average] = {}
        self._alone_s = _Average()

    @property
    def batch_s(self) -> float:
        """Return the average seconds that a batch takes, 0 before the first."""
        return self._batch_s.value

    def finished(self, images: int, seconds: float, *, alone: bool, beside: int, workers: int) -> None:
        """Learn from a batch of ``images`` >= 1 that took ``seconds``, waiting for its worker included.

        alone: it had all workers' threads. beside: batches that still run. workers: batches that can run at once.
        Where more are in flight than there are workers, each takes longer by what it waited for one.
        """
        now = self._clock()
        self._batch_s.add(seconds, now)
        if alone:
            self._alone_s.add(seconds / images, now)
            return
        in_flight = max(beside + 1, workers)
        self._shared.setdefault(images.bit_length(), _Average()).add(seconds / (images * in_flight), now)

    def images_a_second(self) -> float:
        """Return the images a second with every worker busy, 0 while too little was seen.

        Batches of the size that is fastest count: under load they come. An image that had all threads tells less, and
        counts only where there was nothing else.
        """
        if self._batch_s.count < LEAST_BATCHES:
            return 0.0
        image_s = min((each.value for each in self._shared.values()), default=self._alone_s.value)
        return 1.0 / image_s if image_s > 0.0 else 0.0


class _Average:
    """The mean of the first values, then of about the last MEMORY_S."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0
        self._latest = -math.inf

    def add(self, value: float, now: float) -> None:
        self.count += 1
        faded = min(1.0 - math.exp((self._latest - now) / MEMORY_S), MOST_WEIGHT)
        self.value += max(faded, 1.0 / self.count) * (value - self.value)
        self._latest = now
