"""Drives the rollout of one model: feeds the coordinator what happens and answers callers. No Ray in here.

What the coordinator wants done is done in ``effects.py``, replicas are answered in ``polls.py``. Four loops, each begun
again when it fails: the alias is read, ledger programs run, time passes and deaths are looked for, the books are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from models.errors import RegistryError, ReleaseRejectedError
from models.rollout import choice, coordinator, ledger, policy, rollback, state, status
from models.rollout.messages import Target
from models.rollout.order import PLAIN
from serve.alias import Alias
from serve.books import Books, recovered
from serve.effects import Effects
from serve.failure_detector import FailureDetector
from serve.polls import Polls
from serve.programs import Programs
from serve.supervision import end_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from models.rollout.ledger import Ledger
    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report
    from models.rollout.order import Order
    from models.weights.cache import CommittedStore
    from models.weights.registry import Registry
    from serve.audit import Audit
    from serve.depot import Depot
    from serve.faults import FaultPoints
    from serve.rollout_metrics import RolloutMetrics

_log = logging.getLogger(__name__)

ALIAS_WAIT_S: Final = 0.04
"""Longest wait of a rollback for a fresh reading of the alias (seconds): it is quick without a registry, too."""


@dataclass(frozen=True)
class Parts:
    """What all models of a deployment share.

    names: returns the names of all live actors, or None where it cannot tell; blocks. depose: ends this process.
    tidy: called after each commit and rejection. in_thread, in_registry_thread: run a blocking call on a worker thread.
    quality_tolerance: of the quality gate, 0 to 1. metrics: None counts nothing.
    """

    registry: Registry
    depot: Depot
    store: CommittedStore
    ledger: Ledger
    audit: Audit
    faults: FaultPoints
    names: Callable[[], Collection[str] | None]
    in_thread: Callable[..., Awaitable[Any]]
    in_registry_thread: Callable[..., Awaitable[Any]]
    depose: Callable[[], None]
    tidy: Callable[[], None]
    timing: state.Timing
    poll_interval_s: float
    prepare_timeout_s: float
    quality_tolerance: float = 0.003
    metrics: RolloutMetrics | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Reconciler:
    """One model's rollout. ``begin`` once the actor has its incarnation; the other methods answer callers."""

    def __init__(self, model: str, parts: Parts) -> None:
        """Keep the parts; nothing runs before ``begin``."""
        self.model = model
        self._parts = parts
        self._state = state.State(model, parts.timing)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._observer = observer = parts.metrics.of(model) if parts.metrics is not None else None
        self._books = Books(
            model,
            now=lambda: self._state,
            store=parts.store,
            audit=parts.audit,
            registry=parts.registry,
            in_thread=parts.in_thread,
            in_registry_thread=parts.in_registry_thread,
            sleep=parts.sleep,
            observer=observer,
        )
        self._alias = Alias(
            model,
            parts.registry,
            heard=lambda desired: self.feed(state.DesiredRead(desired)),
            in_thread=parts.in_registry_thread,
            faults=parts.faults,
            poll_interval_s=parts.poll_interval_s,
            sleep=parts.sleep,
            clock=parts.clock,
            observer=observer,
        )
        self._programs = Programs(
            model,
            parts.ledger,
            faults=parts.faults,
            feed=self.feed,
            # A rollback's pin is durable before its generation exists, or a restart would roll forward again.
            before_claim=self._books.saved,
            depose=parts.depose,
            sleep=parts.sleep,
        )
        self._polls = Polls(
            now=lambda: self._state,
            feed=self.feed,
            change=self._change,
            faults=parts.faults,
            clock=parts.clock,
            sleep=parts.sleep,
        )
        self._effects = Effects(
            model,
            parts,
            now=lambda: self._state,
            feed=self.feed,
            spawn=self._spawn,
            admit=self._polls.admitted,
            alias=self._alias,
            books=self._books,
            programs=self._programs,
        )
        self._detector = FailureDetector(
            model,
            now=lambda: self._state,
            feed=self.feed,
            polls=self._polls,
            names=parts.names,
            in_thread=parts.in_thread,
            clock=parts.clock,
            sleep=parts.sleep,
        )

    @property
    def wanted(self) -> frozenset[str]:
        """Return the digests that this machine's cache must keep."""
        now = self._state
        desired = policy.wanted(now.desired, now.rejections)
        targets = [now.target, desired, now.restored, now.pin.target if now.pin else None]
        if now.committed is not None:
            targets += [now.committed.target, now.committed.previous]
        return frozenset(target.digest for target in targets if target is not None)

    @property
    def replicas(self) -> int:
        """Return how many members are not known to be dead."""
        return sum(view.died_at is None for view in self._state.members.values())

    async def begin(self, incarnation: int) -> None:
        """Read the ledger and the durable record, then run. Returns when the model's state is known."""
        recovery = await self._programs.until_reached(lambda: ledger.recover(self.model))
        record = await self._parts.in_thread(self._parts.store.load, self.model)
        await self._parts.faults.hit("actor.after_recover")
        self.feed(recovered(incarnation, recovery, record))
        for loop in (self._alias.run, self._programs.run, self._detector.run, self._books.run):
            self._spawn(self._supervise(loop))

    def feed(self, event: state.Event) -> None:
        """Give the machine an event, start what it wants done and wake everybody who waits for an answer."""
        self._state, effects = coordinator.step(self._state, event, self._parts.clock())
        for effect in effects:
            self._effects.start(effect)
        self._effects.tidy()
        self._changed.set()
        self._changed = asyncio.Event()

    # Answers to replicas

    async def next(self, report: Report) -> PollReply:
        """Take a replica's report and wait, some seconds at most, for what it should do."""
        return await self._polls.next(report)

    async def join(self, replica: str) -> Join | Refused | None:
        """Return what the starting ``replica`` must load, why there is nothing, or None after some seconds."""
        return await self._polls.join(replica)

    async def admit(self, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Make a replica that has loaded ``generation`` a member, durably first."""
        return await self._polls.admit(replica, generation, failure)

    def leave(self, replica: str) -> None:
        """Forget a replica that can start no batch any more."""
        self.feed(state.MemberLeft(replica))

    async def files(self, version: str, digest: str) -> Any:
        """Return the shared handle of a release's files. Raises ReleaseError or RegistryError."""
        return await self._parts.depot.files(self.model, version, digest)

    async def signature(self, version: str, digest: str) -> str:
        """Return the signature under which the version was let in, "" for none. Raises as ``files``."""
        return await self._parts.depot.signature(self.model, version, digest)

    # Answers to people

    async def promote(self, version: str, reason: str, who: str, order: Order = PLAIN) -> None:
        """Move the alias to ``version`` and act on it at once. Raises what ``register.promote`` raises."""
        before, after = choice.serving(self._state), Target(version, "", "")
        result = "refused"
        try:
            desired = await self._alias.promote(version, reason, order)
            result, after = "accepted", Target(version, desired.digest, desired.promotion)
        finally:
            self._books.write("promote", before, after, result=result, reason=reason, who=who)

    async def roll_back(self, wait_s: float, who: str) -> None:
        """Take back the latest promotion, committed or not; returns when that is done, was refused or time is up.

        One that is not committed yet is given up, and what serves stays; else what served before comes back. The alias
        follows. Repeating it while it is under way joins it. Raises ReleaseRejectedError with step ``rollback`` where
        nothing served before, or where what serves is itself what a rollback returned to.
        """
        # A pin overrides the alias as it is now; over an old reading, a moved alias would look like a newer promotion.
        with contextlib.suppress(RegistryError, TimeoutError):
            await asyncio.wait_for(self._alias.read(), ALIAS_WAIT_S)
        tried, pin = self._state.target, rollback.standing(self._state)
        if pin is None or pin.passing:
            way = rollback.ways(self._state)
            if way is None:
                raise ReleaseRejectedError(self._nothing_before(), step="rollback")
            self.feed(state.RollbackAsked(uuid4().hex))
            self._books.write("rollback", *way, result="accepted", who=who)
            pin = self._state.pin
        promotion, end = pin.target.promotion if pin else "", self._parts.clock() + wait_s
        while (self._rolling_back(promotion) or self._giving_up(tried)) and self._parts.clock() < end:
            await self._change(end - self._parts.clock())

    def hint(self) -> None:
        """Read the alias soon: somebody says that it moved."""
        self._alias.hint()

    def status(self) -> dict[str, Any]:
        """Return the rollout's state for people, and what it knows of the registry."""
        found = status.status(self._state, self._parts.clock())
        if found["reason"] is None and found["state"] == "starting" and self._alias.trouble:
            found["reason"] = self._alias.trouble
        serving = choice.serving(self._state)
        from_cache = serving is not None and self._parts.depot.from_cache(serving.digest)
        return {**found, "registry": {**self._alias.status(), "from_cache": from_cache}}

    def observe(self) -> None:
        """Tell the metrics how the rollout stands."""
        if self._observer is not None:
            self._observer.stands(status.status(self._state, self._parts.clock())["state"])

    def arm(self, point: str, action: str, replica: str | None) -> None:
        """Hand a fault to one replica, or to every member, with its next answer."""
        self._polls.arm(point, action, replica)

    async def stop(self) -> None:
        """End every task."""
        await end_tasks(list(self._tasks))

    # Small things

    def _nothing_before(self) -> str:
        committed = self._state.committed
        if committed is None or not committed.rollback:
            return f"{self.model} has served only one version so far: there is no earlier version to return to"
        return (
            f"there is no earlier version of {self.model} to return to: version {committed.target.version} serves "
            "since the last rollback; promote the version that you want"
        )

    def _rolling_back(self, promotion: str) -> bool:
        now = self._state
        if now.pin is None or now.pin.target.promotion != promotion:
            return False
        serving, target = choice.serving(now), now.pin.target
        if serving is not None and (serving.version, serving.digest) == (target.version, target.digest):
            return False
        return policy.find(now.rejections, target) is None

    def _giving_up(self, tried: Target | None) -> bool:
        """Return whether the attempt for ``tried`` is still under way although something else is wanted."""
        now = self._state
        if tried is None or now.target != tried:
            return False
        return choice.choose(now, self._parts.clock()) != policy.Roll(tried)

    async def _change(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def _supervise(self, loop: Callable[[], Coroutine[object, object, None]]) -> None:
        while True:
            try:
                await loop()
            except Exception:  # noqa: BLE001 - a loop that ended in silence would stop every rollout
                _log.exception("a loop of the rollout of %s failed and begins again", self.model)
            await self._parts.sleep(0.5)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
