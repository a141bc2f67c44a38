"""The shadow: a candidate runs unseen on images that the serving version has answered, when there is time to spare.

One image at a time, on a thread of its own, and only while a worker is idle and nothing waits: an image of the serving
version never waits for a lane because of it, one of the canary at most for the shadow that runs. Two images may wait
for such a moment; whatever comes meanwhile is dropped, not queued.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.engine.compare import compare
from models.engine.detect import Encoded, Seen
from models.engine.priority import give_way
from models.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.engine.batch import Lane
    from models.engine.detect import Job
    from models.engine.slots import Lease
    from models.evidence import Pairs
    from models.types import Detections, DetectOptions

logger = logging.getLogger(__name__)

MOST_WAITING = 2


@dataclass(frozen=True, slots=True, eq=False)
class ShadowImage:
    """An image that was answered, to be looked at again. told: receives the outcome, on the event loop's thread.

    lease: pins the candidate; None when it may not be run any more.
    """

    data: bytes
    options: DetectOptions
    answered: Detections
    lease: Callable[[], Lease | None]
    told: Callable[[ShadowOutcome], None]


ShadowOutcome = tuple["Seen", "Pairs"] | Exception | None
"""What the candidate saw and how it compares; the candidate's own failure; None where the image was dropped."""


class Shadow:
    """Runs shadow images one by one. Its methods belong to one event loop's thread."""

    def __init__(
        self,
        run: Callable[[Lease, Sequence[Job | Encoded], Lane], Sequence[Seen | Exception | None]],
        spare_lane: Callable[[Lease], Lane | None],
        ended: Callable[[], None],
    ) -> None:
        """Run nothing yet.

        Args:
            run: blocks for one outcome an image.
            spare_lane: returns a lane of the lease's session that nobody needs now, None when no time is to spare.
            ended: told whenever a lane has been given back.

        """
        self._run = run
        self._spare_lane = spare_lane
        self._ended = ended
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow", initializer=give_way)
        self._waiting: deque[ShadowImage] = deque()
        self._running: asyncio.Future[ShadowOutcome] | None = None
        self._closed = False

    def offer(self, image: ShadowImage) -> None:
        """Run ``image`` now or at the next idle moment; drop it where others wait for one already."""
        if self._closed or len(self._waiting) >= MOST_WAITING:
            image.told(None)
            return
        self._waiting.append(image)
        self.pump()

    def pump(self) -> None:
        """Start an image if one waits and there is time to spare. Call it whenever a worker became idle."""
        while self._waiting and self._running is None and not self._closed:
            lease = self._waiting[0].lease()
            if lease is None:
                self._waiting.popleft().told(None)
                continue
            lane = self._spare_lane(lease)
            if lane is None:
                lease.end()
                return
            self._start(self._waiting.popleft(), lease, lane)

    def clear(self) -> None:
        """Drop what waits; what runs may end."""
        while self._waiting:
            self._waiting.popleft().told(None)

    async def close(self, grace_s: float) -> None:
        """Drop what waits, and wait at most ``grace_s`` seconds for what runs. Idempotent."""
        self._closed = True
        self.clear()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=grace_s)
        self._thread.shutdown(wait=False)

    def _start(self, image: ShadowImage, lease: Lease, lane: Lane) -> None:
        lease.reserve(lane.number)
        self._running = asyncio.get_running_loop().run_in_executor(self._thread, self._look, image, lease, lane)
        self._running.add_done_callback(lambda done: self._finish(image, lease, done))

    def _look(self, image: ShadowImage, lease: Lease, lane: Lane) -> ShadowOutcome:
        # Returned, not raised: asyncio cannot carry every exception out of a thread.
        try:
            seen = self._run(lease, [Encoded(image.data, image.options, math.inf)], lane)[0]
            if isinstance(seen, Seen):
                return seen, compare(image.answered, seen.detections)
        except Exception as error:
            logger.exception("a candidate failed on a shadow image")
            seen = error
        # An image that cannot be read, or a service that closes, is not the candidate's fault.
        return None if isinstance(seen, RequestError | CapacityError) else seen

    def _finish(self, image: ShadowImage, lease: Lease, done: asyncio.Future[ShadowOutcome]) -> None:
        self._running = None
        lease.reserve(None)
        lease.end()
        image.told(None if done.cancelled() else done.result())
        self._ended()
        self.pump()
