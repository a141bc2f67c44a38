"""A batcher in virtual time, and everything that happens to it."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.engine.backends.backend import Plan
from models.engine.batch import CROWDED_S, Batcher, Lane
from models.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

NEVER = 1e9


class FakeExecutor(Executor):
    """Runs what it is given ``seconds`` of the loop's time later."""

    def __init__(self, seconds: float) -> None:
        """Take that long for every call."""
        self.seconds = seconds

    def submit(self, call: Callable, /, *args: object) -> Future:
        """Schedule the call."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        asyncio.get_running_loop().call_later(self.seconds, lambda: future.set_result(call(*args)))
        return future


@dataclass
class FakeLease:
    """Counts that it was ended. ``shared``: whether its batch shared the batcher, as seen when it started."""

    plan: Plan
    world: World
    shared: bool = False
    reserved: int | None = None

    def end(self) -> None:
        """Give it back."""
        self.world.leases -= 1


@dataclass
class World:
    """A batcher, and everything that happened to it."""

    plan: Plan = field(default_factory=lambda: Plan(2, 3))
    service_s: float = 1.0
    max_queue: int = 1000
    error: BaseException | None = None
    serving: bool = True
    leases: int = 0
    batches: list[list[Any]] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)
    shared_at: float = -math.inf
    most_running: int = 0
    started_while_held: int = 0
    told_wrongly_alone: int = 0
    reserved: int | None = None
    reserved_for: Any = None
    leased_for: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the batcher."""
        self.loop = asyncio.get_running_loop()
        self.batcher: Batcher = Batcher(
            self.lease,
            self.run,
            FakeExecutor(self.service_s),
            max_queue=self.max_queue,
            clock=self.loop.time,
            started=self.started,
            finished=self.finished,
        )

    def lease(self, group: object) -> FakeLease | None:
        """Hand out a lease while serving."""
        if not self.serving:
            return None
        self.leases += 1
        self.leased_for.append(group)
        reserved = self.reserved if self.reserved_for in {None, group} else None
        return FakeLease(self.plan, self, reserved=reserved)

    def started(self, lease: FakeLease, size: int, queued: int) -> None:
        """Look at the batcher as a batch starts."""
        now = self.loop.time()
        lease.shared = size > 1 or queued > 0 or self.batcher.running > 1
        if lease.shared:
            self.shared_at = now
        lease.shared |= now < self.shared_at + CROWDED_S
        self.started_while_held += self.batcher.held
        self.most_running = max(self.most_running, self.batcher.running)

    def finished(self, _lease: FakeLease, _jobs: object, _lane: Lane, seconds: float, _error: object) -> None:
        """Look at the batcher as a batch has ended."""
        assert seconds >= 0
        if self.batcher.running or self.batcher.queued:
            self.shared_at = self.loop.time()

    def run(self, lease: FakeLease, jobs: Sequence[Any], lane: Lane) -> list[Any]:
        """Answer every job with itself; refuse the bad ones."""
        self.batches.append(list(jobs))
        self.lanes.append(lane)
        self.told_wrongly_alone += lane.alone and (lease.shared or not lease.plan.alone)
        if self.error is not None:
            raise self.error
        return [InvalidOptionError("bad") if job[-1] == "bad" else ("seen", job) for job in jobs]


def play(virtual_loop: type, scene: Callable[[], Coroutine]) -> Any:
    """Run ``scene`` in virtual time."""
    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        return runner.run(scene())


async def settle() -> None:
    """Let everything that is due happen, without letting time pass."""
    for _ in range(8):
        await asyncio.sleep(0)
