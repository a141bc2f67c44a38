"""How fast a prepared release is beside the one that serves: the same golden images, in turns, in the same process.

Measured as a shadow runs: only while a worker is idle and nothing waits, so that no live image waits for it. In turns,
because whatever else the machine does slows both alike, and by the least time of each, because it only ever slows.
The medians of two equal networks once differed 1.8 times on a crowded machine. A candidate that looks slow is looked at
again, for longer, and the least times of all looks count: a gate refuses it only where it was fast in none of them.
Both run on a thread that gives way, so that live images which arrive meanwhile have the processors to themselves.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING, Final

from models.engine.batch import Lane
from models.engine.detect import Encoded, Seen
from models.engine.engine_settings import DOUBT
from models.engine.priority import give_way
from models.types import DetectOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from models.engine.detect import Job
    from models.engine.slots import Lease, Slots

logger = logging.getLogger(__name__)

LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 9
ROUNDS_S: Final = 0.12
"""No further round of the first look begins after this time (seconds): a rollout waits for it."""
LOOKS: Final = 3
"""Most looks; each is twice as long as the one before."""
PATIENCE_S: Final = 1.0
"""Longest wait for time to spare, all rounds of a look together (seconds)."""
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
        doubt: float = DOUBT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Measure nothing yet; for the first arguments see ``Shadow``.

        doubt: ratio of the least times, >= 1, above which one more look is taken; clock: seconds; sleep: waits on it.
        """
        self._slots, self._run, self._spare_lane, self._ended = slots, run, spare_lane, ended
        self._doubt, self._clock, self._sleep = doubt, clock, sleep

    async def compare(self, digest: str) -> tuple[float, float] | None:
        """Return the least time of a golden image in the release of ``digest`` and in the serving one (milliseconds).

        None where nothing else serves, there is no golden image, an image failed, or no time was to spare.
        """
        resident, active = self._slots.find(digest), self._slots.active
        if resident is None or active is None or resident is active or not resident.release.golden:
            return None
        images = cycle([image.data for image in resident.release.golden])
        ours: list[float] = []
        theirs: list[float] = []
        thread = ThreadPoolExecutor(1, thread_name_prefix="pace", initializer=give_way)
        try:
            for number in range(LOOKS):
                found = await self._look(thread, digest, active.release.digest, images, 2**number)
                if len(found) < LEAST_ROUNDS:
                    break
                ours += (each for each, _ in found)
                theirs += (each for _, each in found)
                if min(ours) <= self._doubt * min(theirs):
                    break
        finally:
            thread.shutdown(wait=False)
        return (1e3 * min(ours), 1e3 * min(theirs)) if ours else None

    async def _look(
        self, thread: ThreadPoolExecutor, digest: str, serving: str, images: Iterator[bytes], times: int
    ) -> list[tuple[float, float]]:
        """Return the seconds of both in each round of one look, ``times`` as long as the first."""
        rounds: list[tuple[float, float]] = []
        begun = self._clock()
        while len(rounds) < times * MOST_ROUNDS:
            if len(rounds) >= LEAST_ROUNDS and self._clock() - begun >= times * ROUNDS_S:
                break
            data = next(images)
            ours = await self._time(thread, digest, data, begun + times * PATIENCE_S)
            theirs = await self._time(thread, serving, data, begun + times * PATIENCE_S)
            if ours is None or theirs is None:
                break
            rounds.append((ours, theirs))
        return rounds

    async def _time(self, thread: ThreadPoolExecutor, digest: str, data: bytes, end: float) -> float | None:
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
        # Never as an image that is alone: only one of the two might be, or have a form for it.
        lane = Lane(lane.number)
        running = asyncio.get_running_loop().run_in_executor(thread, self._run_once, lease, data, lane)
        # Whoever waits may be cancelled; the lane is given back only when the call has ended.
        running.add_done_callback(lambda _: self._finish(lease))
        return await asyncio.shield(running)

    def _run_once(self, lease: Lease, data: bytes, lane: Lane) -> float | None:
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
