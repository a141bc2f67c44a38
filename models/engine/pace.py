"""How fast a prepared release is beside the one that serves: the same golden images, in turns, in the same process.

Measured as a shadow runs: only while a worker is idle and nothing waits, so that no live image waits for it. In turns,
because whatever else the machine does slows both alike.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from itertools import cycle
from statistics import median
from typing import TYPE_CHECKING, Final

from models.engine.detect import Encoded, Seen
from models.types import DetectOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from models.engine.batch import Lane
    from models.engine.detect import Job
    from models.engine.slots import Lease, Slots

logger = logging.getLogger(__name__)

LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 9
ROUNDS_S: Final = 0.25
"""No further round begins after this time (seconds): a rollout waits for it."""
PATIENCE_S: Final = 1.0
"""Longest wait for time to spare, all rounds together (seconds)."""
PAUSE_S: Final = 0.005


class Pace:
    """Compares the pace of two resident releases. Its methods belong to one event loop's thread."""

    def __init__(
        self,
        slots: Slots,
        run: Callable[[Lease, Sequence[Job | Encoded], Lane], Sequence[Seen | Exception | None]],
        spare_lane: Callable[[Lease], Lane | None],
        ended: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Measure nothing yet; for the first arguments see ``Shadow``. clock: seconds; sleep: waits on it."""
        self._slots, self._run, self._spare_lane, self._ended = slots, run, spare_lane, ended
        self._clock, self._sleep = clock, sleep

    async def compare(self, digest: str) -> tuple[float, float] | None:
        """Return the median time of a golden image in the release of ``digest`` and in the serving one (milliseconds).

        None where nothing else serves, there is no golden image, an image failed, or no time was to spare.
        """
        resident, active = self._slots.find(digest), self._slots.active
        if resident is None or active is None or resident is active or not resident.release.golden:
            return None
        images = cycle([image.data for image in resident.release.golden])
        rounds: list[tuple[float, float]] = []
        begun = self._clock()
        while len(rounds) < MOST_ROUNDS and (len(rounds) < LEAST_ROUNDS or self._clock() - begun < ROUNDS_S):
            data = next(images)
            ours = await self._time(digest, data, begun + PATIENCE_S)
            theirs = await self._time(active.release.digest, data, begun + PATIENCE_S)
            if ours is None or theirs is None:
                break
            rounds.append((ours, theirs))
        if len(rounds) < LEAST_ROUNDS:
            return None
        return 1e3 * median(ours for ours, _ in rounds), 1e3 * median(theirs for _, theirs in rounds)

    async def _time(self, digest: str, data: bytes, end: float) -> float | None:
        while True:
            lease = self._slots.lease_resident(digest, self._slots.generation)
            if lease is None:
                return None
            lane = None if lease.reserved is not None else self._spare_lane(lease)
            if lane is not None:
                break
            lease.end()
            if self._clock() >= end:
                return None
            await self._sleep(PAUSE_S)
        lease.reserve(lane.number)
        running = asyncio.get_running_loop().run_in_executor(None, self._look, lease, data, lane)
        # Whoever waits may be cancelled; the lane is given back only when the call has ended.
        running.add_done_callback(lambda _: self._finish(lease))
        return await asyncio.shield(running)

    def _look(self, lease: Lease, data: bytes, lane: Lane) -> float | None:
        try:
            seen = self._run(lease, [Encoded(data, DetectOptions(), math.inf)], lane)[0]
        except Exception:
            logger.exception("a golden image could not be timed")
            return None
        return seen.infer_s if isinstance(seen, Seen) and seen.infer_s > 0.0 else None

    def _finish(self, lease: Lease) -> None:
        lease.reserve(None)
        lease.end()
        self._ended()
