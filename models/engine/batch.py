"""The batcher: whenever a lane is free it takes everything that waits and may share a batch.

Pure asyncio, no wait timer: an idle engine starts the first image at once, a busy one fills the next batch by itself.
Items of one group (equal tensor shape) share a batch; the group of the oldest item goes first, save one whose lane
somebody else uses: the others pass it. Every future ends: with a result, its own error, the batch's error, its
deadline, or the closing of the batcher.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from models.errors import (
    BackendError,
    DeadlineExceededError,
    OverloadedError,
    SteelyardError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from concurrent.futures import Executor

    from models.engine.backends.backend import Plan

logger = logging.getLogger(__name__)


CROWDED_S = 0.1
"""Seconds after one item had to share the batcher with another in which none counts as alone."""


class Lane(NamedTuple):
    """Where a batch runs. number: 0 to lanes - 1; alone: one item that shares the batcher with no other."""

    number: int
    alone: bool = False


class BatchLease(Protocol):
    """What a batch holds while it runs."""

    @property
    def plan(self) -> Plan:
        """Return how many batches may run at once and how many items each may hold."""
        ...

    @property
    def reserved(self) -> int | None:
        """Return the lane that the batcher must not use now, None where it may use all."""
        ...

    def end(self) -> None:
        """Give it back."""
        ...


JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
LeaseT = TypeVar("LeaseT", bound=BatchLease)


@dataclass(slots=True, eq=False)
class _Item(Generic[JobT, ResultT]):
    job: JobT
    group: Hashable
    number: int
    enqueued: float
    future: asyncio.Future[tuple[ResultT, float]]
    timer: asyncio.TimerHandle
    waited: float = 0.0


_Done: TypeAlias = "asyncio.Future[tuple[Sequence[ResultT | Exception], BaseException | None]]"


class Batcher(Generic[JobT, ResultT, LeaseT]):
    """Queues jobs and runs them in batches on lanes. Its methods belong to one event loop's thread."""

    def __init__(
        self,
        lease: Callable[[Hashable], LeaseT | None],
        run: Callable[[LeaseT, Sequence[JobT], Lane], Sequence[ResultT | Exception]],
        executor: Executor,
        *,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
        started: Callable[[LeaseT, int, int], None] | None = None,
        finished: Callable[[LeaseT, Sequence[JobT], Lane, float, BaseException | None], None] | None = None,
    ) -> None:
        """Make an empty batcher.

        Args:
            lease: takes a lease of what answers a group now, None when nothing does; called in the tick in which a
                batch of that group starts.
            run: blocks on a thread of ``executor``: (lease, jobs, lane) -> one result or error a job, in order.
            executor: has at least as many threads as the plans have workers.
            max_queue: most items that may wait, >= 1.
            clock: seconds, monotonic; deadlines are on it.
            started: told (lease, size, items still waiting).
            finished: told (lease, jobs, lane, seconds, error of the whole batch).

        """
        self._lease = lease
        self._run = run
        self._executor = executor
        self._max_queue = max_queue
        self._clock = clock
        self._started = started
        self._finished = finished
        self._numbers = count()
        self._groups: dict[Hashable, dict[int, _Item[JobT, ResultT]]] = {}
        self._queued = 0
        self._running: dict[int, tuple[_Done[ResultT], list[_Item[JobT, ResultT]]]] = {}
        self._held = False
        self._refusal: str | None = None
        self._closed = False
        self._pump_scheduled = False
        self._crowded_until = -math.inf

    @property
    def queued(self) -> int:
        """Return how many items wait."""
        return self._queued

    @property
    def running(self) -> int:
        """Return how many batches run."""
        return len(self._running)

    def running_jobs(self) -> Iterator[JobT]:
        """Yield the jobs of the batches that run."""
        return (item.job for _, items in self._running.values() for item in items)

    @property
    def held(self) -> bool:
        """Return whether batches are kept from starting."""
        return self._held

    def spare_lane(self, plan: Plan) -> Lane | None:
        """Return a lane that no batch uses, None unless a worker of ``plan`` is idle and nothing waits or is held."""
        if self._queued or self._held or self._closed or len(self._running) >= plan.workers:
            return None
        free = (number for number in reversed(range(plan.lanes)) if number not in self._running)
        number = next(free, None)
        alone = plan.alone and not self._running and self._clock() >= self._crowded_until
        return None if number is None else Lane(number, alone)

    def lane_freed(self) -> None:
        """Look again whether a batch may start: a reserved lane was given back."""
        self._schedule_pump()

    def check_open(self) -> None:
        """Raise UnavailableError when no new item would be taken."""
        if self._closed:
            msg = "the service is shutting down; send the request again"
            raise UnavailableError(msg)
        if self._refusal is not None:
            raise UnavailableError(self._refusal)

    async def submit(self, job: JobT, group: Hashable, deadline: float) -> tuple[ResultT, float]:
        """Queue ``job`` and return its result and the seconds it waited.

        Raises UnavailableError, OverloadedError or DeadlineExceededError, whatever error ``run`` names for this job, or
        BackendError when ``run`` raised something unforeseen. Cancelling the caller takes the job out of the queue.
        """
        self.check_open()
        if self._queued >= self._max_queue:
            msg = f"{self._queued} images wait already, the limit is {self._max_queue}; send the image again later"
            raise OverloadedError(msg)
        now = self._clock()
        if now >= deadline:
            raise late()
        if self._queued or self._running:
            self._crowded_until = now + CROWDED_S
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[ResultT, float]] = loop.create_future()
        timer = loop.call_later(deadline - now, self._expire, future)
        item = _Item(job, group, next(self._numbers), now, future, timer)
        self._groups.setdefault(group, {})[item.number] = item
        self._queued += 1
        self._schedule_pump()
        try:
            return await future
        finally:
            timer.cancel()
            self._remove(item)

    def hold(self) -> None:
        """Start no further batch until ``resume``."""
        self._held = True

    def resume(self) -> None:
        """Start batches again."""
        self._held = False
        self._schedule_pump()

    def fail_all(self, message: str | None) -> None:
        """Refuse what waits and what comes with UnavailableError(message) until called with None."""
        self._refusal = message
        if message is not None:
            self._fail_waiting(message)

    def end_waiting(self, result: ResultT) -> None:
        """End everything that waits with ``result``, without running it; its callers may queue it anew."""
        now = self._clock()
        for group in list(self._groups.values()):
            for item in list(group.values()):
                self._remove(item)
                if not item.future.done():
                    item.future.set_result((result, now - item.enqueued))

    async def close(self, grace_s: float) -> None:
        """End every future: what waits now, what runs after at most ``grace_s`` seconds. Idempotent."""
        self._closed = True
        message = "the service is shutting down; send the request again"
        self._fail_waiting(message)
        running = [future for future, _ in self._running.values()]
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for _, items in self._running.values():
            for item in items:
                _fail(item, UnavailableError(message))

    def _schedule_pump(self) -> None:
        # One tick later, so that the images of one request find each other.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while self._queued and not self._held and not self._closed and self._start_oldest():
            pass

    def _start_oldest(self) -> bool:
        """Start a batch of the oldest group that may run now; return whether another look is worth it."""
        # Groups and their items keep the order of arrival, so the oldest item is the first of its group.
        for group in sorted(self._groups, key=lambda each: next(iter(self._groups[each]))):
            lease = self._lease(group)
            if lease is None:
                continue
            if len(self._running) >= lease.plan.lanes:
                # Nobody passes a group that waits for batches: under load its turn would never come.
                lease.end()
                return False
            if len(self._running) + (lease.reserved is not None) >= lease.plan.lanes:
                # Whoever uses that lane may hang; only this group has to wait for it.
                lease.end()
                continue
            items = self._take(group, lease.plan.max_batch)
            if items:
                self._start(lease, items)
            else:
                lease.end()
            return True
        return False

    def _take(self, group: Hashable, most: int) -> list[_Item[JobT, ResultT]]:
        taken: list[_Item[JobT, ResultT]] = []
        for item in list(self._groups[group].values()):
            if len(taken) == most:
                break
            self._remove(item)
            if not item.future.done():  # expired or cancelled in this very tick
                taken.append(item)
        return taken

    def _start(self, lease: LeaseT, items: list[_Item[JobT, ResultT]]) -> None:
        number = next(each for each in count() if each not in self._running and each != lease.reserved)
        begun = self._clock()
        # On arrival the next item may find a lane, so all threads are taken only where none is likely to come.
        shares = len(items) > 1 or bool(self._running) or bool(self._queued)
        alone = lease.plan.alone and not shares and begun >= self._crowded_until
        lane = Lane(number, alone)
        for item in items:
            item.waited = begun - item.enqueued
        jobs = [item.job for item in items]
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, self._guarded, lease, items, jobs, lane)
        except RuntimeError:  # the executor is shut down
            lease.end()
            for item in items:
                _fail(item, UnavailableError("the service is shutting down; send the request again"))
            return
        self._running[number] = (future, items)
        if self._started is not None:
            self._started(lease, len(items), self._queued)
        future.add_done_callback(lambda done: self._finish(lease, items, lane, begun, done))

    def _guarded(
        self, lease: LeaseT, items: list[_Item[JobT, ResultT]], jobs: list[JobT], lane: Lane
    ) -> tuple[Sequence[ResultT | Exception], BaseException | None]:
        if all(item.future.done() for item in items):  # while it waited for a thread
            return [late()] * len(jobs), None
        # Returned, not raised: asyncio cannot carry every exception out of a thread (StopIteration, SystemExit).
        try:
            results = self._run(lease, jobs, lane)
        except BaseException as error:  # noqa: BLE001 - the lane must go on whatever its batch did
            return (), error
        if len(results) != len(jobs):
            return (), RuntimeError(f"{len(results)} results for {len(jobs)} jobs. This is a bug.")
        return results, None

    def _finish(
        self,
        lease: LeaseT,
        items: list[_Item[JobT, ResultT]],
        lane: Lane,
        begun: float,
        done: _Done[ResultT],
    ) -> None:
        del self._running[lane.number]
        if self._queued or self._running:
            self._crowded_until = self._clock() + CROWDED_S
        lease.end()
        self._schedule_pump()
        results: Sequence[ResultT | Exception] = ()
        error: BaseException | None = UnavailableError("the service is shutting down; send the request again")
        if not done.cancelled():
            results, error = done.result()
        if error is not None and not isinstance(error, SteelyardError):
            logger.error("a batch of %d images failed", len(items), exc_info=error)
        for index, item in enumerate(items):
            if error is not None:
                _fail(item, _as_steelyard(error))
                continue
            outcome = results[index]
            if isinstance(outcome, Exception):
                _fail(item, _as_steelyard(outcome))
            elif not item.future.done():
                item.future.set_result((outcome, item.waited))
        if self._finished is not None:
            self._finished(lease, [item.job for item in items], lane, self._clock() - begun, error)

    def _expire(self, future: asyncio.Future[tuple[ResultT, float]]) -> None:
        # The waiting caller wakes up and takes its item out of the queue; a running batch goes on without it.
        if not future.done():
            future.set_exception(late())

    def _fail_waiting(self, message: str) -> None:
        for group in list(self._groups.values()):
            for item in list(group.values()):
                self._remove(item)
                _fail(item, UnavailableError(message))

    def _remove(self, item: _Item[JobT, ResultT]) -> None:
        group = self._groups.get(item.group)
        if group is not None and group.pop(item.number, None) is not None:
            self._queued -= 1
            if not group:
                del self._groups[item.group]


def _fail(item: _Item[JobT, ResultT], error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def _as_steelyard(error: BaseException) -> SteelyardError:
    if isinstance(error, SteelyardError):
        return copy.copy(error)  # several callers may raise it at once, each with its own traceback
    failure = BackendError("the detector failed on this image; send it again, and tell the operator if it stays")
    failure.__cause__ = error
    return failure


def late() -> DeadlineExceededError:
    """Return the error of a request whose deadline has passed."""
    return DeadlineExceededError("the request's time ran out before its image was answered; allow more time or retry")
