"""Drives one model's member machine in a replica: polls the rollout actor, prepares, holds, flips, asks the ledger.

The machine (``models/rollout/member.py``) decides; this file only does what it says, on the replica's event loop, and
never blocks it. Timers are local: the actor's death shows only seconds later, a hold's deadline must not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Protocol

from models.errors import (
    CapacityError,
    LedgerError,
    RegistryError,
    ReleaseError,
    ReleaseFaultError,
    ReleaseRejectedError,
    SteelyardError,
)
from models.rollout import ledger as rules
from models.rollout import member
from models.rollout.messages import Attempt, Directive, Failure, Join, Refused
from models.weights.release import open_release
from serve.faults import FaultPoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.rollout.ledger import Ledger
    from models.rollout.messages import Admission, PollReply, Report
    from models.types import Release
    from models.weights.cache import ReleaseCache
    from serve.settings import Settings

_log = logging.getLogger(__name__)

POLL_DEADLINE_S: Final = 15.0
"""Longest wait for an answer of the actor (seconds); it answers an idle poll after 5."""
CALL_DEADLINE_S: Final = 20.0
BEAT_LIMIT_S: Final = 20.0
"""Silence of the loop after which the replica is unhealthy (seconds); it turns at least once a second."""
MOST_FAILURES: Final = 5
"""Failures of the loop in a row after which the replica is unhealthy."""
_PASSING: Final = (CapacityError, LedgerError, RegistryError)
"""Errors by which an actor, or the way to it, says that asking again may help."""
SHUTTING_DOWN: Final = "this replica is shutting down; retry, another replica answers"


class EnginePort(Protocol):
    """What a member asks of its model's engine."""

    async def prepare(self, release: Release) -> None:
        """Load, warm and test ``release`` as the candidate. Raises ReleaseError."""
        ...

    def hold(self) -> None:
        """Start no further batch."""
        ...

    def resume(self) -> None:
        """Start batches again."""
        ...

    def flip(self, digest: str, generation: int) -> None:
        """Make a resident release the active one. Raises ReleaseFaultError where it is not resident."""
        ...

    def discard(self, digest: str) -> None:
        """Drop a candidate."""
        ...

    def fail_all(self, message: str | None) -> None:
        """Refuse requests with ``message`` until called with None."""
        ...


class ActorPort(Protocol):
    """What a member asks of the rollout actor. Every method may raise anything where the actor is lost."""

    async def next(self, model: str, report: Report) -> PollReply:
        """Report and wait, some seconds at most, for something to do."""
        ...

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """Return what a starting replica must load; None where it should ask again."""
        ...

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Ask to become a member on ``generation``, or tell why it could not be loaded."""
        ...

    async def leave(self, model: str, replica: str) -> None:
        """Say that this replica can start no batch any more."""
        ...

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """Return the files of a release, uint8 arrays (size,), shared memory where there is some."""
        ...


class Member:
    """One replica's part in the rollout of one model: ``start`` once, then ``run`` as a task, ``stop`` at the end."""

    def __init__(  # noqa: PLR0917 - the parts of a member, in the order of the contract
        self,
        model: str,
        replica_id: str,
        engine: EnginePort,
        actor: ActorPort,
        ledger: Ledger,
        cache: ReleaseCache | None,
        settings: Settings,
        *,
        faults: FaultPoints | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Do nothing yet.

        Args:
            model: name of the model that ``engine`` serves.
            replica_id: the replica's Ray actor name; its disappearance is the proof of death.
            engine: the engine, opened.
            actor: the rollout actor.
            ledger: where a replica in doubt asks.
            cache: the releases on this machine's disk, used where the actor cannot hand out files; None for none.
            settings: deadlines.
            faults: named points, shared by the members of a process; none armed by default.
            clock: monotonic seconds.
            sleep: waits that many seconds on ``clock``.
        """
        self.model, self.replica = model, replica_id
        self._engine, self._actor, self._ledger, self._cache = engine, actor, ledger, cache
        self._settings = settings
        self._faults = faults or FaultPoints(allowed=settings.allow_fault_injection)
        self._clock, self._sleep = clock, sleep
        self._state: member.MemberState | None = None
        self._inbox: list[member.Event] = []
        self._wake = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._loaded: Attempt | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._beat: float | None = None
        self._failures = 0
        self._trouble = ""
        self._stopping = False

    async def start(self) -> None:
        """Load and flip to what is committed, or to the first release ever, and be admitted.

        Raises ReleaseRejectedError, ReleaseFaultError or what else the actor answered, such as UnknownModelError, with
        a clear text; the replica must not serve then.
        """
        await self._faults.hit("replica.before_join")
        deadline = self._clock() + self._settings.prepare_timeout_s
        self._engine.hold()
        while True:
            answer = await self._ask_what_to_load(deadline)
            if isinstance(answer, Refused):
                raise _as_error(answer.failure)
            if answer is not None and await self._join(answer, deadline):
                break
        self._state = member.MemberState(
            replica=self.replica,
            generation=answer.attempt.generation,
            digest=answer.attempt.target.digest,
            hold_deadline_s=self._settings.hold_deadline_s,
            in_doubt_limit_s=self._settings.in_doubt_limit_s,
            incarnation=answer.incarnation,
        )
        self._engine.resume()

    async def run(self) -> None:
        """Take part in rollouts until ``stop``; a failure is logged and the loop begins again after a pause."""
        while not self._stopping:
            try:
                await self._turn_forever()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a dead loop would leave every rollout without this member
                self._failures += 1
                self._trouble = f"{type(error).__name__}: {error}"
                _log.exception("the member loop of %s failed and begins again", self.model)
                await self._sleep(min(5.0, 0.1 * 2.0**self._failures))

    async def stop(self) -> None:
        """Refuse all requests, leave the member set and end every task. Call it once no request is wanted any more."""
        self._stopping = True
        self._wake.set()
        self._engine.fail_all(SHUTTING_DOWN)
        for task in (*self._tasks, *([self._work] if self._work else [])):
            task.cancel()
        try:
            await asyncio.wait_for(self._actor.leave(self.model, self.replica), 2.0)
        except Exception as error:  # noqa: BLE001 - whoever cannot say farewell is missed soon: its name disappears
            _log.info("could not leave the member set of %s: %s", self.model, error)

    def healthy(self) -> str | None:
        """Return None, or why this replica must be replaced: the loop is dead, stuck or fails again and again."""
        if self._stopping:
            return None
        if self._beat is None:
            return None if self._state is None else f"the rollout loop of {self.model} was never started"
        if self._failures >= MOST_FAILURES:
            return f"the rollout loop of {self.model} failed {self._failures} times in a row: {self._trouble}"
        silent = self._clock() - self._beat
        return f"the rollout loop of {self.model} stands still for {silent:.0f} s" if silent > BEAT_LIMIT_S else None

    def ready(self) -> str | None:
        """Return None, or why no request should come here now."""
        if self._stopping:
            return "shutting down"
        if self._state is None:
            return f"{self.model} is not loaded yet"
        if self._state.failing:
            return member.IN_DOUBT
        return f"{self.model} joins the fleet again" if self._state.outside else None

    # The loop

    async def _turn_forever(self) -> None:
        poll: asyncio.Task[PollReply] | None = None
        sent: Report | None = None
        pause, next_poll = 0.1, 0.0
        wake = asyncio.create_task(self._wake.wait())
        timer: asyncio.Task[None] | None = None
        try:
            while not self._stopping:
                self._beat = self._clock()
                await self._apply(member.Tick())
                while self._inbox:
                    await self._apply(self._inbox.pop(0))
                state = self._running()
                if poll is not None and sent is not None and _changed(sent, state):
                    poll.cancel()
                    poll, next_poll = None, 0.0
                if poll is None and not state.outside and self._clock() >= next_poll:
                    self._state, sent = member.report(state)
                    poll = asyncio.create_task(self._poll(sent))
                timer = asyncio.create_task(_wait(self._sleep, self._until_next(next_poll if poll is None else None)))
                waiting: set[asyncio.Task[object]] = {wake, timer} if poll is None else {wake, timer, poll}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                timer.cancel()
                if wake.done():
                    self._wake.clear()
                    wake = asyncio.create_task(self._wake.wait())
                if poll is not None and poll.done():
                    reply, poll = self._reply(poll), None
                    if reply is None:
                        pause = min(2.0, pause * 2.0)
                        next_poll = self._clock() + pause
                    else:
                        pause, next_poll, self._failures = 0.1, 0.0, 0
                        await self._obey(reply)
        finally:
            for task in (poll, wake, timer):
                if task is not None:
                    task.cancel()

    def _until_next(self, next_poll: float | None) -> float:
        state, now = self._running(), self._clock()
        waits = [1.0]
        if state.phase == "holding":
            waits.append(state.deadline - now if now < state.deadline else 0.05)
        if next_poll is not None:
            waits.append(next_poll - now)
        return max(0.0, min(waits))

    async def _poll(self, report: Report) -> PollReply:
        call = asyncio.ensure_future(asyncio.wait_for(self._actor.next(self.model, report), POLL_DEADLINE_S))
        try:
            if report.phase == "holding" and self._faults.armed("replica.after_ack"):
                await asyncio.sleep(0.05)
                await self._faults.hit("replica.after_ack")
            return await call
        finally:
            call.cancel()

    def _reply(self, poll: asyncio.Task[PollReply]) -> PollReply | None:
        error = poll.exception()
        if error is None:
            return poll.result()
        # Not held: serve on and ask again, nobody can commit without this replica. Held: the deadline runs on.
        _log.info("the rollout actor did not answer for %s: %s", self.model, error)
        return None

    async def _obey(self, reply: PollReply) -> None:
        for point, action in reply.arms:
            self._faults.arm(point, action)
        if reply.directive is not None:
            await self._apply(member.Directed(reply.directive))

    async def _apply(self, event: member.Event) -> None:
        self._state, effects = member.step(self._running(), event, self._clock())
        try:
            for effect in effects:
                await self._do(effect)
        except Exception:
            # Machine and engine no longer agree, e.g. on what is loaded: answer nothing until they do again.
            self._happened(member.Directed(Directive("rejoin", self._running().incarnation)))
            raise

    async def _do(self, effect: member.Effect) -> None:  # noqa: C901 - one arm an effect
        match effect:
            case member.Prepare(attempt):
                self._work = self._spawn(self._prepare(attempt))
            case member.Cancel():
                if self._work is not None:
                    self._work.cancel()
            case member.Discard(digest):
                self._engine.discard(digest)
            case member.Hold():
                self._engine.hold()
                await self._faults.hit("replica.before_ack")
            case member.Resume():
                self._engine.resume()
            case member.Flip(digest, generation):
                await self._faults.hit("replica.before_flip")
                self._engine.flip(digest, generation)
                await self._faults.hit("replica.after_flip")
            case member.Ask(generation):
                self._spawn(self._ask(generation))
            case member.FailAll(message):
                self._engine.fail_all(message)
            case member.Rejoin():
                self._spawn(self._rejoin())

    # What takes time, each in a task of its own that always ends in an event

    async def _prepare(self, attempt: Attempt) -> None:
        try:
            await asyncio.wait_for(self._load(attempt), self._settings.prepare_timeout_s)
        except asyncio.CancelledError:
            if self._loaded == attempt:
                # Loading had just ended, so the engine freed nothing: the machine does, if nobody wants it any more.
                self._happened(member.Prepared(attempt))
            raise
        except Exception as error:  # noqa: BLE001 - reported, so that the rollout ends
            self._happened(member.PrepareFailed(attempt, _as_failure(error)))
        else:
            self._happened(member.Prepared(attempt))

    async def _load(self, attempt: Attempt) -> None:
        self._loaded = None
        await self._faults.hit("replica.before_prepare")
        target = attempt.target
        files = await self._files(target.version, target.digest)
        await self._faults.hit("replica.after_fetch")
        release = await asyncio.to_thread(open_release, self.model, target.version, files, expect_digest=target.digest)
        await self._engine.prepare(release)
        self._loaded = attempt
        await self._faults.hit("replica.after_load")
        if self._cache is not None:
            await self._keep(self._cache, target.digest, files)

    async def _files(self, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        try:
            return await asyncio.wait_for(
                self._actor.files(self.model, version, digest), self._settings.prepare_timeout_s
            )
        except Exception as error:
            _log.info("the rollout actor did not hand out version %s of %s: %s", version, self.model, error)
            cached = await asyncio.to_thread(self._cache.get, digest) if self._cache is not None else None
            if cached is None:
                raise
            return cached

    async def _keep(self, cache: ReleaseCache, digest: str, files: Mapping[str, NDArray[np.uint8]]) -> None:
        try:
            await asyncio.to_thread(cache.put, digest, files)
        except ReleaseFaultError as error:
            _log.warning("version not kept on this machine: %s", error)

    async def _ask(self, generation: int) -> None:
        try:
            await self._faults.hit("replica.before_ask")
            verdict = await rules.perform(rules.decision(self.model, generation, "ABORT"), self._ledger)
            await self._faults.hit("replica.after_ask")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, nobody knows what stands: hold on and ask again
            if not isinstance(error, LedgerError):
                _log.warning("asking the ledger failed: %s", error)
            await self._sleep(0.05)
            self._happened(member.LedgerSilent(generation))
        else:
            self._happened(member.Ruled(generation, "COMMIT" if verdict == "COMMIT" else "ABORT"))

    async def _rejoin(self) -> None:
        pause = 0.1
        while True:
            try:
                deadline = self._clock() + self._settings.prepare_timeout_s
                answer = await self._ask_what_to_load(deadline)
                if isinstance(answer, Join) and await self._join(answer, deadline):
                    break
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - held all the while; only success ends this
                _log.warning("could not join the fleet of %s again: %s", self.model, error)
            await self._sleep(pause)
            pause = min(2.0, pause * 2.0)
        self._happened(member.Joined(answer.attempt.generation, answer.attempt.target.digest))

    async def _ask_what_to_load(self, deadline: float) -> Join | Refused | None:
        pause = 0.1
        while True:
            try:
                return await asyncio.wait_for(self._actor.committed(self.model, self.replica), CALL_DEADLINE_S)
            except Exception as error:
                if isinstance(error, SteelyardError) and not isinstance(error, _PASSING):
                    raise
                _log.info("the rollout actor did not answer for %s: %s", self.model, error)
                if self._clock() >= deadline:
                    msg = f"the rollout of {self.model} cannot be reached; see whether the cluster is up"
                    raise ReleaseFaultError(msg, step="fetch") from error
            await self._sleep(pause)
            pause = min(2.0, pause * 2.0)

    async def _join(self, join: Join, deadline: float) -> bool:
        """Load what ``join`` names, flip to it and be admitted; False where something newer must be loaded."""
        attempt = join.attempt
        try:
            await asyncio.wait_for(self._load(attempt), self._settings.prepare_timeout_s)
        except Exception as error:
            failure = _as_failure(error)
            if not join.decided:
                await asyncio.wait_for(
                    self._actor.admit(self.model, self.replica, attempt.generation, failure), CALL_DEADLINE_S
                )
            raise _as_error(failure) from error
        self._engine.flip(attempt.target.digest, attempt.generation)
        await self._faults.hit("replica.before_admit")
        while True:
            verdict: Admission = "retry"
            try:
                asked = self._actor.admit(self.model, self.replica, attempt.generation, None)
                verdict = await asyncio.wait_for(asked, CALL_DEADLINE_S)
            except Exception as error:
                if self._clock() >= deadline:
                    msg = f"the rollout of {self.model} does not admit this replica; see whether the cluster is up"
                    raise ReleaseFaultError(msg, step="commit") from error
            if verdict != "retry":
                await self._faults.hit("replica.after_admit")
                return verdict == "admitted"
            await self._sleep(0.1)

    # Small things

    def _running(self) -> member.MemberState:
        if self._state is None:
            msg = "the member runs before it was started: await start() first. This is a bug."
            raise RuntimeError(msg)
        return self._state

    def _happened(self, event: member.Event) -> None:
        self._inbox.append(event)
        self._wake.set()

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _wait(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)


def _changed(sent: Report, state: member.MemberState) -> bool:
    key = state.attempt.key if state.attempt else None
    now = (state.generation, state.phase, key, state.candidate)
    return (sent.generation, sent.phase, sent.attempt, sent.candidate) != now


def _as_failure(error: Exception) -> Failure:
    if isinstance(error, ReleaseError):
        return Failure(error.step, str(error), permanent=error.permanent)
    if isinstance(error, TimeoutError):
        return Failure("load", "loading took longer than prepare_timeout_s allows", permanent=False)
    if isinstance(error, MemoryError):
        return Failure("load", "there is not enough memory to load it", permanent=False)
    _log.error("a release could not be prepared", exc_info=error)
    return Failure("load", "loading failed for a reason that only the log tells", permanent=False)


def _as_error(failure: Failure) -> ReleaseError:
    kind = ReleaseRejectedError if failure.permanent else ReleaseFaultError
    return kind(failure.reason, step=failure.step)
