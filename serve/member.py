"""Drives one model's member machine in a replica: polls the rollout actor, prepares, tries, holds, flips, asks.

The machine (``models/rollout/member.py``) decides; this file talks to the actor and ``member_effects.py`` does what the
machine says, both on the replica's event loop, which they never block. Timers are local: the actor's death shows only
seconds later, a hold's deadline must not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from models.rollout import isolation, member
from models.rollout.messages import Directive
from serve.faults import FaultPoints
from serve.joining import Joining
from serve.loading import Loader
from serve.member_effects import MemberEffects
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.ledger import Ledger
    from models.rollout.messages import PollReply, Report
    from models.weights.cache import ReleaseCache
    from serve.member_ports import ActorPort, EnginePort
    from serve.settings import Settings

_log = logging.getLogger(__name__)

POLL_DEADLINE_S: Final = 15.0
"""Longest wait for an answer of the actor (seconds); it answers an idle poll after 5."""
BEAT_LIMIT_S: Final = 20.0
"""Silence of the loop after which the replica is unhealthy (seconds); it turns at least once a second."""
MOST_FAILURES: Final = 5
"""Failures of the loop in a row after which the replica is unhealthy."""
SHUTTING_DOWN: Final = "this replica is shutting down; retry, another replica answers"


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
        self._engine, self._actor = engine, actor
        self._settings = settings
        self._faults = faults or FaultPoints(allowed=settings.allow_fault_injection)
        self._clock, self._sleep = clock, sleep
        loader = Loader(
            model,
            engine,
            actor,
            cache,
            rule=rule_of(settings),
            faults=self._faults,
            timeout_s=settings.prepare_timeout_s,
        )
        self._joining = Joining(
            model,
            replica_id,
            engine=engine,
            actor=actor,
            loader=loader,
            faults=self._faults,
            patience_s=settings.prepare_timeout_s,
            clock=clock,
            sleep=sleep,
        )
        self._effects = MemberEffects(
            model,
            replica_id,
            engine=engine,
            ledger=ledger,
            loader=loader,
            joining=self._joining,
            faults=self._faults,
            happened=self._happened,
            clock=clock,
            sleep=sleep,
        )
        self._state: member.MemberState | None = None
        self._inbox: list[member.Event] = []
        self._wake = asyncio.Event()
        self._beat: float | None = None
        self._failures = 0
        self._trouble = ""
        # Strict mode counts on a tick within its margin.
        self._longest_pause_s = 5.0 if settings.strict_isolation_s is None else 0.5
        self._stopping = False

    async def start(self) -> None:
        """Load and flip to what is committed, or to the first release ever, and be admitted.

        Raises ReleaseRejectedError, ReleaseFaultError or what else the actor answered, such as UnknownModelError, with
        a clear text; the replica must not serve then.
        """
        await self._faults.hit("replica.before_join")
        self._engine.hold()
        joined = await self._joining.first()
        self._state = member.MemberState(
            replica=self.replica,
            generation=joined.attempt.generation,
            digest=joined.attempt.target.digest,
            hold_deadline_s=self._settings.hold_deadline_s,
            in_doubt_limit_s=self._settings.in_doubt_limit_s,
            incarnation=joined.incarnation,
            isolation_s=math.inf if self._settings.strict_isolation_s is None else self._settings.strict_isolation_s,
            heard=self._joining.asked,
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
                await self._sleep(min(self._longest_pause_s, 0.1 * 2.0**self._failures))

    async def stop(self) -> None:
        """Refuse all requests, leave the member set and end every task. Call it once no request is wanted any more."""
        self._stopping = True
        self._wake.set()
        self._engine.fail_all(SHUTTING_DOWN)
        self._effects.cancel()
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
        joins = f"{self.model} joins the fleet again" if self._state.outside else None
        return member.refusing(self._state) or joins

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
                    self._state, sent = self._report(state)
                    poll = asyncio.create_task(self._poll(sent))
                idle = poll is None and not state.outside
                timer = asyncio.create_task(_wait(self._sleep, self._until_next(next_poll if idle else None)))
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

    def _report(self, state: member.MemberState) -> tuple[member.MemberState, Report]:
        state, report = member.report(state)
        if report.trial:
            report = replace(report, evidence=self._engine.evidence())
        # Only who flipped with the others has a version before to compare with.
        if self._effects.since_flip_s < self._settings.probation_s + POLL_DEADLINE_S:
            report = replace(report, watch=self._engine.watch(), watch_before=self._engine.watch_before())
        return state, report

    def _until_next(self, next_poll: float | None) -> float:
        state, now = self._running(), self._clock()
        waits = [1.0, isolation.wait_s(state, now)]
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
                await self._effects.do(effect)
        except Exception:
            # Machine and engine no longer agree, e.g. on what is loaded: answer nothing until they do again.
            self._happened(member.Directed(Directive("rejoin", self._running().incarnation)))
            raise

    # Small things

    def _running(self) -> member.MemberState:
        if self._state is None:
            msg = "the member runs before it was started: await start() first. This is a bug."
            raise RuntimeError(msg)
        return self._state

    def _happened(self, event: member.Event) -> None:
        self._inbox.append(event)
        self._wake.set()


async def _wait(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)


def _changed(sent: Report, state: member.MemberState) -> bool:
    key = state.attempt.key if state.attempt else None
    now = (state.generation, state.phase, key, state.candidate, state.trial, state.failure)
    return (sent.generation, sent.phase, sent.attempt, sent.candidate, sent.trial, sent.failure) != now
