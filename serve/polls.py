"""Answers the replicas of one model: their polls, their wish to join and their request to be admitted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from models.errors import SteelyardError
from models.rollout import answers, state
from models.rollout.messages import Join, PollReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.messages import Admission, Directive, Failure, Refused, Report
    from serve.faults import FaultPoints

IDLE_POLL_S: Final = 5.0
BUSY_POLL_S: Final = 0.25
"""Longest time a poll of a replica is left open (seconds)."""
LOAD_POLL_S: Final = 0.5
"""The same while replicas load, beside answers. Whoever has loaded asks anew at once, and a hold begins only where no
poll is older than ``Timing.fresh_s``."""
ADMIT_WAIT_S: Final = 10.0
WATCH_POLL_S: Final = 0.5
"""The same while evidence is collected: each report brings it anew, and none may be older than ``Timing.fresh_s``."""
BUSY: Final = frozenset({"fetch", "judge", "claim", "bootstrap", "prepare", "hold", "commit", "abort"})
"""Phases in which something is expected to happen soon."""
LOADING: Final = frozenset({"fetch", "prepare"})
"""Those of them that take seconds, in which polls may stay open longer."""


class Polls:
    """Every call is answered within seconds; who gets no directive asks again."""

    def __init__(
        self,
        *,
        now: Callable[[], state.State],
        feed: Callable[[state.Event], None],
        change: Callable[[float], Awaitable[None]],
        faults: FaultPoints,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Wait for calls. now: returns the model's state; change: waits so many seconds for it to change, at most."""
        self._now, self._feed, self._change = now, feed, change
        self._faults, self._clock, self._sleep = faults, clock, sleep
        self._admissions: dict[str, asyncio.Future[Admission]] = {}
        self._latest: dict[str, int] = {}
        self._arms: dict[str, list[tuple[str, str]]] = {}
        self._told_go: tuple[int, str] | None = None

    async def next(self, report: Report) -> PollReply:
        """Take a replica's report and wait, some seconds at most, for what it should do."""
        replica = report.replica
        self._latest[replica] = max(report.seq, self._latest.get(replica, 0))
        self._feed(state.Polled(report))
        begun = self._clock()
        while True:
            directive = answers.directive_for(self._now(), replica, self._clock())
            arms = tuple(self._arms.pop(replica, ()))
            # A newer poll of the same replica gets the answer; this one was given up.
            if directive is not None or arms or self._latest.get(replica, 0) > report.seq:
                if directive is not None:
                    await self._before_telling(directive, replica)
                return PollReply(directive, arms)
            left = begun + _patience(self._now()) - self._clock()
            if left <= 0.0:
                return PollReply(None)
            await self._change(left)

    async def join(self, replica: str) -> Join | Refused | None:
        """Return what the starting ``replica`` must load, why there is nothing, or None after some seconds."""
        begun = self._clock()
        while True:
            answer = answers.join_answer(self._now(), self._clock())
            left = begun + IDLE_POLL_S - self._clock()
            if isinstance(answer, Join) and not answer.decided:
                self._feed(state.TryTold(replica, answer.attempt.generation))
            if answer is not None or left <= 0.0:
                return answer
            await self._change(left)

    async def admit(self, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Make a replica that has loaded ``generation`` a member, durably first."""
        self.admitted(replica, "retry")
        answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._admissions[replica] = answer
        self._feed(state.AdmitAsked(replica, generation, failure))
        try:
            return await asyncio.wait_for(answer, ADMIT_WAIT_S)
        except TimeoutError:
            return "retry"
        finally:
            if self._admissions.get(replica) is answer:
                del self._admissions[replica]

    def admitted(self, replica: str, answer: Admission) -> None:
        """Answer the request of ``replica`` that waits, if one does."""
        waiting = self._admissions.pop(replica, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def arm(self, point: str, action: str, replica: str | None) -> None:
        """Hand a fault to one replica, or to every member, with its next answer."""
        for name in self._now().members:
            if replica in (None, name, name.rpartition("#")[2]):
                self._arms.setdefault(name, []).append((point, action))
        self._feed(state.Tick())

    def died(self, replica: str) -> None:
        """Forget the faults kept for a replica that is dead."""
        self._arms.pop(replica, None)

    def forget_strangers(self) -> None:
        """Forget what was heard of replicas that are no members."""
        for replica in [known for known in self._latest if known not in self._now().members]:
            del self._latest[replica]

    async def _before_telling(self, directive: Directive, replica: str) -> None:
        with contextlib.suppress(SteelyardError):
            if directive.kind == "hold":
                await self._faults.hit("actor.before_hold")
            elif directive.kind == "go" and directive.attempt is not None:
                generation = directive.attempt.generation
                if self._told_go is None or self._told_go[0] != generation:
                    self._told_go = (generation, replica)
                elif self._told_go[1] != replica and self._faults.armed("actor.mid_go"):
                    await self._sleep(0.05)
                    await self._faults.hit("actor.mid_go")


def _patience(now: state.State) -> float:
    if now.phase in LOADING:
        return LOAD_POLL_S
    if now.phase in BUSY:
        return BUSY_POLL_S
    return WATCH_POLL_S if now.phase == "trial" or now.probation is not None else IDLE_POLL_S
