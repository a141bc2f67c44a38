"""Who may wait: an image enters only if the queue has room and its answer can come in time.

Refusing at the door costs nothing and says when to come back; letting in what will expire in the queue costs its
client the whole wait, and the others their place.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from models.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHT = 0.1
"""Of the latest batch in the average time of one image."""
LEAST_RETRY_S = 1.0


class Door:
    """Belongs to one event loop's thread."""

    def __init__(self, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let at most ``max_queue`` >= 1 images wait; ``clock`` is that of the deadlines."""
        self._max_queue = max_queue
        self._clock = clock
        self._image_s = 0.0

    def check(self, waiting: int, running: int, deadline: float, workers: int) -> None:
        """Let one more image in, or raise OverloadedError with the seconds after which to come again.

        Args:
            waiting: images that wait already.
            running: images on their workers.
            deadline: of the new one, on the clock.
            workers: images that run side by side, >= 1.

        """
        expected_s = (waiting + running + 1) * self._image_s / workers
        if waiting >= self._max_queue:
            msg = f"{waiting} images wait already, the limit is {self._max_queue}; send it again later"
            raise OverloadedError(msg, retry_after_s=max(LEAST_RETRY_S, math.ceil(expected_s)))
        missing_s = self._clock() + expected_s - deadline
        if waiting and missing_s > 0.0:
            msg = (
                f"{waiting} images wait already, so the answer would come in about {expected_s:.1f} s, too late for "
                "this request; send it again later, or allow more time"
            )
            raise OverloadedError(msg, retry_after_s=max(LEAST_RETRY_S, math.ceil(missing_s)))

    def finished(self, images: int, seconds: float) -> None:
        """Learn from a batch of ``images`` that took ``seconds`` on its worker."""
        each = seconds / max(images, 1)
        self._image_s = each if self._image_s == 0.0 else (1 - WEIGHT) * self._image_s + WEIGHT * each
