"""Watches and moves the production alias of one model. Losing, repeating or reordering hints is harmless."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any, Final, TypedDict

from models.errors import RegistryError, SteelyardError
from models.rollout.order import PLAIN
from models.weights.register import promote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.order import Order
    from models.rollout.policy import Pin
    from models.weights.registry import Desired, Registry
    from serve.faults import FaultPoints
    from serve.rollout_metrics import RolloutObserver

_log = logging.getLogger(__name__)

DEADLINE_S: Final = 15.0
HINT_GAP_S: Final = 0.2
"""Least time between two reads, however many hints come (seconds)."""
JITTER: Final = 0.2


class RegistryStatus(TypedDict):
    """What the rollout knows of the registry. reachable: None before the first reading of this life has ended.

    age_s: seconds since the last reading that succeeded, None where none has. failures: readings that failed so far.
    reason: why the last one failed, None where it did not.
    """

    reachable: bool | None
    age_s: float | None
    failures: int
    reason: str | None


class Alias:
    """The production alias of one model, read and moved by one call at a time."""

    def __init__(
        self,
        model: str,
        registry: Registry,
        *,
        heard: Callable[[Desired | None], None],
        in_thread: Callable[..., Awaitable[Any]],
        faults: FaultPoints,
        poll_interval_s: float,
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        observer: RolloutObserver | None = None,
    ) -> None:
        """Read nothing yet. heard: takes every reading; in_thread: runs a blocking call of the registry."""
        self._model, self._registry, self._heard = model, registry, heard
        self._in_thread, self._faults, self._sleep = in_thread, faults, sleep
        self._poll_interval_s = poll_interval_s
        self._clock, self._observer = clock, observer
        self._read_at: float | None = None
        self._failures = 0
        self._one = asyncio.Lock()
        self._hinted = asyncio.Event()
        self._moving = False
        self._reading: asyncio.Future[Desired | None] | None = None
        self.trouble = ""
        """Why the last reading failed, "" where it did not."""

    async def run(self) -> None:
        """Read the alias on every hint and, with jitter, at every interval, for ever."""
        while True:
            with contextlib.suppress(RegistryError):
                await self.read()
            await self._sleep(HINT_GAP_S)
            wait = self._poll_interval_s * random.uniform(1.0 - JITTER, 1.0 + JITTER)  # noqa: S311 - jitter, no secret
            await _first(self._hinted.wait(), self._sleep(wait))
            self._hinted.clear()

    def hint(self) -> None:
        """Read it soon."""
        self._hinted.set()

    async def read(self) -> None:
        """Read the alias now. Raises RegistryError."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._one:
                desired = await self._desired()
        except (SteelyardError, TimeoutError) as error:
            self.trouble = str(error) or "the registry did not answer in time"
            self._failures += 1
            if self._observer is not None:
                self._observer.not_read()
            _log.warning("the alias of %s cannot be read: %s", self._model, self.trouble)
            raise RegistryError(self.trouble) from error
        self.trouble = ""
        self._read_at = self._clock()
        if self._observer is not None:
            self._observer.read()
        self._heard(desired)

    def status(self) -> RegistryStatus:
        """Return what this life knows of the registry, for people."""
        age_s = None if self._read_at is None else round(self._clock() - self._read_at, 1)
        known = self._failures > 0 or self._read_at is not None
        return RegistryStatus(
            reachable=not self.trouble if known else None,
            age_s=age_s,
            failures=self._failures,
            reason=self.trouble or None,
        )

    async def promote(self, version: str, reason: str, order: Order = PLAIN) -> Desired:
        """Move the alias to ``version``. Raises what ``register.promote`` raises, or RegistryError when time is up."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._one:
                desired: Desired = await self._in_thread(
                    promote, self._registry, self._model, version, reason=reason, order=order
                )
        except TimeoutError as error:
            msg = "the registry did not answer in time; see with `steelyard models` whether the promotion was recorded"
            raise RegistryError(msg) from error
        self._heard(desired)
        return desired

    async def move_back(self, pin: Pin) -> None:
        """Point the alias at the pin's target, unless somebody has promoted something else since."""
        if self._moving:
            return
        self._moving = True
        moved: Desired | None = None
        try:
            await self._faults.hit("actor.before_alias")
            async with asyncio.timeout(DEADLINE_S), self._one:
                found = await self._desired()
                if found is not None and (found.promotion, found.version) == pin.over:
                    moved = await self._in_thread(
                        self._registry.promote,
                        self._model,
                        pin.target.version,
                        promotion=pin.target.promotion,
                        reason="rollback",
                    )
        except (SteelyardError, TimeoutError) as error:
            # The pin stands for the alias meanwhile; its next reading tries again.
            _log.warning("the alias of %s could not be moved back yet: %s", self._model, error)
        finally:
            self._moving = False
        if moved is not None:
            self._heard(moved)

    async def _desired(self) -> Desired | None:
        # A thread cannot be cancelled: while the last reading's still waits, one more would only occupy one more. What
        # it brings in the end is older than what this caller asks for, so it is read anew.
        if self._reading is not None:
            await asyncio.wait({self._reading})
        self._reading = asyncio.ensure_future(self._in_thread(self._registry.desired, self._model))
        self._reading.add_done_callback(lambda read: read.cancelled() or read.exception())
        return await asyncio.shield(self._reading)


async def _first(*work: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
