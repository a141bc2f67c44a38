"""Drives the rollout of one model: runs the coordinator's effects and feeds it what comes of them. No Ray in here.

Four loops, each begun again when it fails: the alias is read, ledger programs run, time passes and deaths are looked
for, the books are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from models.errors import RegistryError, ReleaseError, ReleaseRejectedError, SteelyardError
from models.rollout import answers, coordinator, ledger, policy, state
from models.rollout.messages import Directive, Failure, Join, PollReply, Refused, Report, Target
from serve.alias import Alias
from serve.books import Books
from serve.programs import Programs
from serve.supervision import end_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from models.rollout.answers import Status
    from models.rollout.ledger import Ledger
    from models.rollout.messages import Admission
    from models.weights.cache import Committed, CommittedStore
    from models.weights.registry import Registry
    from serve.audit import Audit
    from serve.depot import Depot
    from serve.faults import FaultPoints

_log = logging.getLogger(__name__)

IDLE_POLL_S: Final = 5.0
BUSY_POLL_S: Final = 0.25
"""Longest time a poll of a replica is left open (seconds); well under a second while HOLD wants fresh polls."""
ADMIT_WAIT_S: Final = 10.0
BUSY: Final = frozenset({"fetch", "claim", "bootstrap", "prepare", "hold", "commit", "abort"})


@dataclass(frozen=True)
class Parts:
    """What all models of a deployment share.

    names: returns the names of all live actors, or None where it cannot tell; blocks. depose: ends this process.
    tidy: called after each commit and rejection. in_thread, in_registry_thread: run a blocking call on a worker thread.
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
        self._admissions: dict[str, asyncio.Future[Admission]] = {}
        self._latest: dict[str, int] = {}
        self._arms: dict[str, list[tuple[str, str]]] = {}
        self._told_go: tuple[int, str] | None = None
        self._untidy = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._books = Books(
            model,
            now=lambda: self._state,
            store=parts.store,
            audit=parts.audit,
            registry=parts.registry,
            in_thread=parts.in_thread,
            in_registry_thread=parts.in_registry_thread,
        )
        self._alias = Alias(
            model,
            parts.registry,
            heard=lambda desired: self.feed(state.DesiredRead(desired)),
            in_thread=parts.in_registry_thread,
            faults=parts.faults,
            poll_interval_s=parts.poll_interval_s,
            sleep=parts.sleep,
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

    @property
    def wanted(self) -> frozenset[str]:
        """Return the digests that this machine's cache must keep."""
        now = self._state
        desired = policy.wanted(now.desired, now.rejections)
        targets = [now.target, desired, now.restored, now.pin.target if now.pin else None]
        if now.committed is not None:
            targets += [now.committed.target, now.committed.previous]
        return frozenset(target.digest for target in targets if target is not None)

    async def begin(self, incarnation: int) -> None:
        """Read the ledger and the durable record, then run. Returns when the model's state is known."""
        recovery = await self._programs.until_reached(lambda: ledger.recover(self.model))
        record = await self._parts.in_thread(self._parts.store.load, self.model)
        await self._parts.faults.hit("actor.after_recover")
        self.feed(_recovered(incarnation, recovery, record))
        for loop in (self._alias.run, self._programs.run, self._pass_time, self._books.run):
            self._spawn(self._supervise(loop))

    def feed(self, event: state.Event) -> None:
        """Give the machine an event, start what it wants done and wake everybody who waits for an answer."""
        self._state, effects = coordinator.step(self._state, event, self._parts.clock())
        for effect in effects:
            self._start(effect)
        if self._untidy and self._state.phase == "idle":
            self._untidy = False
            self._parts.tidy()
        self._changed.set()
        self._changed = asyncio.Event()

    # Answers to replicas

    async def next(self, report: Report) -> PollReply:
        """Take a replica's report and wait, some seconds at most, for what it should do."""
        replica = report.replica
        self._latest[replica] = max(report.seq, self._latest.get(replica, 0))
        self.feed(state.Polled(report))
        begun = self._parts.clock()
        while True:
            directive = answers.directive_for(self._state, replica, self._parts.clock())
            arms = tuple(self._arms.pop(replica, ()))
            # A newer poll of the same replica gets the answer; this one was given up.
            if directive is not None or arms or self._latest.get(replica, 0) > report.seq:
                if directive is not None:
                    await self._before_telling(directive, replica)
                return PollReply(directive, arms)
            patience = BUSY_POLL_S if self._state.phase in BUSY else IDLE_POLL_S
            left = begun + patience - self._parts.clock()
            if left <= 0.0:
                return PollReply(None)
            await self._change(left)

    async def join(self, replica: str) -> Join | Refused | None:
        """Return what the starting ``replica`` must load, why there is nothing, or None after some seconds."""
        begun = self._parts.clock()
        while True:
            answer = answers.join_answer(self._state, self._parts.clock())
            left = begun + IDLE_POLL_S - self._parts.clock()
            if isinstance(answer, Join) and not answer.decided:
                self.feed(state.TryTold(replica, answer.attempt.generation))
            if answer is not None or left <= 0.0:
                return answer
            await self._change(left)

    async def admit(self, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Make a replica that has loaded ``generation`` a member, durably first."""
        earlier = self._admissions.pop(replica, None)
        if earlier is not None and not earlier.done():
            earlier.set_result("retry")
        answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._admissions[replica] = answer
        self.feed(state.AdmitAsked(replica, generation, failure))
        try:
            return await asyncio.wait_for(answer, ADMIT_WAIT_S)
        except TimeoutError:
            return "retry"
        finally:
            if self._admissions.get(replica) is answer:
                del self._admissions[replica]

    def leave(self, replica: str) -> None:
        """Forget a replica that can start no batch any more."""
        self.feed(state.MemberLeft(replica))

    async def files(self, version: str, digest: str) -> Any:
        """Return the shared handle of a release's files. Raises ReleaseError or RegistryError."""
        return await self._parts.depot.files(self.model, version, digest)

    # Answers to people

    async def promote(self, version: str, reason: str, who: str) -> None:
        """Move the alias to ``version`` and act on it at once. Raises what ``register.promote`` raises."""
        before, after = coordinator.serving(self._state), Target(version, "", "")
        result = "refused"
        try:
            desired = await self._alias.promote(version, reason)
            result, after = "accepted", Target(version, desired.digest, desired.promotion)
        finally:
            self._books.write("promote", before, after, result=result, reason=reason, who=who)

    async def roll_back(self, wait_s: float, who: str) -> None:
        """Bring back what served before, then move the alias; returns when it serves, was refused or time is up.

        Repeating it while it is under way joins it. Raises ReleaseRejectedError with step ``rollback`` where nothing
        served before, or where what serves is itself what a rollback returned to.
        """
        # A pin overrides the alias as it is now; over an old reading, a moved alias would look like a newer promotion.
        with contextlib.suppress(RegistryError, TimeoutError):
            await asyncio.wait_for(self._alias.read(), 2.0)
        committed = self._state.committed
        promotion = self._pinned()
        if promotion is None:
            if committed is None or committed.back is None:
                raise ReleaseRejectedError(self._nothing_before(), step="rollback")
            promotion = uuid4().hex
            self.feed(state.RollbackAsked(promotion))
            self._books.write("rollback", committed.target, committed.back, result="accepted", who=who)
        end = self._parts.clock() + wait_s
        while self._rolling_back(promotion) and self._parts.clock() < end:
            await self._change(end - self._parts.clock())

    def hint(self) -> None:
        """Read the alias soon: somebody says that it moved."""
        self._alias.hint()

    def status(self) -> Status:
        """Return the rollout's state for people."""
        found = answers.status(self._state, self._parts.clock())
        if found["reason"] is None and found["state"] == "starting" and self._alias.trouble:
            found["reason"] = self._alias.trouble
        return found

    def arm(self, point: str, action: str, replica: str | None) -> None:
        """Hand a fault to one replica, or to every member, with its next answer."""
        for name in self._state.members:
            if replica in (None, name, name.rpartition("#")[2]):
                self._arms.setdefault(name, []).append((point, action))
        self.feed(state.Tick())

    async def stop(self) -> None:
        """End every task."""
        await end_tasks(list(self._tasks))

    # Effects

    def _start(self, effect: state.Effect) -> None:
        match effect:
            case state.Fetch(target):
                self._spawn(self._fetch(target))
            case state.Claim() | state.Decide() | state.RecordMember() | state.ForgetMember():
                self._programs.queue(effect, self._state.incarnation)
            case state.Admit(replica, answer):
                waiting = self._admissions.pop(replica, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            case state.Announce():
                self._announce(effect)
            case state.Audit():
                self._write_down(effect)
            case state.SavePin():
                self._books.save()
            case state.MoveAlias(pin):
                self._spawn(self._alias.move_back(pin))
            case state.Depose():
                _log.error("a later life of the rollout actor exists; this one ends")
                self._parts.depose()

    async def _fetch(self, target: Target) -> None:
        self.feed(await self._fetched(target))

    async def _fetched(self, target: Target) -> state.Event:
        stock = self._parts.depot.stock(self.model, target.version, target.digest)
        try:
            await asyncio.wait_for(stock, self._parts.prepare_timeout_s)
        except ReleaseError as error:
            failure = Failure(error.step, str(error), permanent=error.permanent)
        except SteelyardError as error:
            failure = Failure("fetch", str(error), permanent=False)
        except TimeoutError:
            failure = Failure("fetch", "the store is too slow; it is tried again later", permanent=False)
        except Exception:  # noqa: BLE001 - the machine waits for an event, whatever went wrong
            _log.exception("fetching version %s of %s failed", target.version, self.model)
            failure = Failure("fetch", "fetching it failed for a reason that only the log tells", permanent=False)
        else:
            return state.Fetched(target)
        return state.FetchFailed(target, failure)

    def _announce(self, effect: state.Announce) -> None:
        attempt = effect.attempt
        target, generation = attempt.target, attempt.generation
        _log.info("version %s of %s is committed as generation %d", target.version, self.model, generation)
        self._programs.queue(effect, self._state.incarnation)
        self._books.save()
        self._books.write("roll", attempt.previous, target, result="committed", generation=generation)
        self._books.record_serving(attempt)
        self._untidy = True

    def _write_down(self, effect: state.Audit) -> None:
        target, failure = effect.target, effect.failure
        self._untidy = True
        why = f"{failure.step}: {failure.reason}"
        _log.warning("version %s of %s was %s: %s", target.version, self.model, effect.result, why)
        self._books.write("roll", coordinator.serving(self._state), target, result=effect.result, reason=why)

    # Time and deaths

    async def _pass_time(self) -> None:
        looked = self._parts.clock()
        while True:
            busy = self._state.phase in BUSY
            await self._parts.sleep(0.05 if busy else 0.5)
            self.feed(state.Tick())
            now = self._parts.clock()
            if now - looked >= (0.5 if busy else 2.0):
                looked = now
                await self._look_for_deaths()

    async def _look_for_deaths(self) -> None:
        members = [*self._state.members, *self._state.trying]
        if not members:
            return
        try:
            names = await asyncio.wait_for(self._parts.in_thread(self._parts.names), 5.0)
        except Exception as error:  # noqa: BLE001 - whatever failed, it proves no death
            _log.info("cannot tell which replicas of %s are alive: %s", self.model, error)
            return
        for replica in members if names is not None else ():
            if replica not in names:
                self.feed(state.MemberDied(replica))
                self._arms.pop(replica, None)
        for replica in [known for known in self._latest if known not in self._state.members]:
            del self._latest[replica]

    # Small things

    async def _before_telling(self, directive: Directive, replica: str) -> None:
        faults = self._parts.faults
        with contextlib.suppress(SteelyardError):
            if directive.kind == "hold":
                await faults.hit("actor.before_hold")
            elif directive.kind == "go" and directive.attempt is not None:
                generation = directive.attempt.generation
                if self._told_go is None or self._told_go[0] != generation:
                    self._told_go = (generation, replica)
                elif self._told_go[1] != replica and faults.armed("actor.mid_go"):
                    await self._parts.sleep(0.05)
                    await faults.hit("actor.mid_go")

    def _pinned(self) -> str | None:
        """Return the promotion of the rollback that stands and was not refused, None where there is none."""
        pin, desired = self._state.pin, self._state.desired
        if pin is None or not policy.stands(pin, desired) or policy.find(self._state.rejections, pin.target):
            return None
        return pin.target.promotion

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
        serving, target = coordinator.serving(now), now.pin.target
        if serving is not None and (serving.version, serving.digest) == (target.version, target.digest):
            return False
        return policy.find(now.rejections, target) is None

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


def _recovered(incarnation: int, recovery: ledger.Recovery, record: Committed | None) -> state.Recovered:
    event = state.Recovered(incarnation, recovery)
    if record is None:
        return event
    event = replace(event, pin=policy.decode_pin(record.pin))
    if recovery.committed is not None:
        return event
    # The cluster is new and the service is not: what it served last comes first.
    previous = None
    if record.previous_version is not None and record.previous_digest is not None:
        previous = Target(record.previous_version, record.previous_digest, "")
    return replace(
        event,
        restored=Target(record.version, record.digest, record.promotion or ""),
        restored_previous=previous,
        restored_generation=record.generation,
    )
