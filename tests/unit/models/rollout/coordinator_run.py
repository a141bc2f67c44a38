"""A coordinator under test: what it is fed, what it wants, and what it notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.rollout import coordinator, state
from models.rollout.ledger import Recovery
from models.rollout.messages import Attempt, Failure, MemberPhase, Report, Target
from models.rollout.order import PLAIN, Order
from models.rollout.state import (
    AdmitAsked,
    Claim,
    Claimed,
    DesiredRead,
    Fetch,
    Fetched,
    Judged,
    MemberRecorded,
    Note,
    Polled,
    Recovered,
    State,
    Timing,
)
from models.weights.registry import Desired

if TYPE_CHECKING:
    from models.evidence import Evidence

ONE, TWO, THREE = Target("1", "d1", "p1"), Target("2", "d2", "p2"), Target("3", "d3", "p3")
SERVING = Attempt(4, 1, ONE, Target("0", "d0", "p0"))
BLIND = Failure("golden", "it is blind", permanent=True)
BUSY = Failure("load", "no memory", permanent=False)


def wants(target: Target, order: Order = PLAIN) -> DesiredRead:
    """Return the event of an alias that names ``target``."""
    return DesiredRead(Desired("m", target.version, target.digest, "ready", target.promotion, order))


class Run:
    """A machine under test: feeds events at a moment and keeps the effects of the last one; notes go aside."""

    def __init__(
        self, *members: str, committed: Attempt | None = SERVING, timing: Timing | None = None, **recovered: object
    ) -> None:
        """Recover into incarnation 2 with these members."""
        self.state, self.now = State("m", timing or Timing()), 0.0
        self.effects: tuple[state.Effect, ...] = ()
        self.noted: list[Note] = []
        self._seq = 10
        found = Recovery(committed, committed.generation if committed else 0, frozenset(), frozenset(members))
        self.feed(Recovered(2, found, **recovered))  # type: ignore[arg-type]

    def feed(self, event: state.Event, *, at: float | None = None) -> tuple[state.Effect, ...]:
        """Feed one event, at the moment ``at`` or the last one."""
        self.now = self.now if at is None else at
        self.state, effects = coordinator.step(self.state, event, self.now)
        self.noted += [effect for effect in effects if isinstance(effect, Note)]
        self.effects = tuple(effect for effect in effects if not isinstance(effect, Note))
        return self.effects

    @property
    def notes(self) -> list[str]:
        """Return what was noted so far, one word each."""
        return [note.result for note in self.noted]

    @property
    def last_note(self) -> Note:
        """Return the last thing that was noted."""
        return self.noted[-1]

    def report(
        self, replica: str, phase: MemberPhase, seq: int, failure: Failure | None = None
    ) -> tuple[state.Effect, ...]:
        """Let a member report on the attempt under way."""
        key = self.state.attempt.key if self.state.attempt and phase != "idle" else None
        generation = self.state.committed.generation if self.state.committed else 0
        return self.feed(Polled(Report(replica, seq, generation, "d1", phase, key, None, failure)))

    def fetched(self, target: Target) -> tuple[state.Effect, ...]:
        """Let the target be fetched and pass the gates, where there is something to compare it with."""
        effects = self.feed(Fetched(target))
        return self.feed(Judged(target, ())) if self.state.phase == "judge" else effects

    def tried(
        self,
        *members: str,
        stage: int,
        evidence: Evidence | None = None,
        phase: MemberPhase = "prepared",
        at: float | None = None,
    ) -> tuple[state.Effect, ...]:
        """Let members report, one after the other, on the trial step that they run in the attempt under way."""
        assert self.state.attempt is not None
        key = self.state.attempt.key
        for member in members:
            self._seq += 1
            told = Report(member, self._seq, 4, "d1", phase, key, "d2", trial=stage, evidence=evidence)
            self.feed(Polled(told), at=at)
        return self.effects

    def join(self, replica: str) -> None:
        """Let a replica be admitted and report for the first time."""
        assert self.state.committed is not None
        generation = self.state.committed.generation
        self.feed(AdmitAsked(replica, generation))
        self.feed(MemberRecorded(replica, in_charge=True))
        self.feed(Polled(Report(replica, 1, generation, "d1")))

    def prepare(self, target: Target = TWO, order: Order = PLAIN) -> Attempt:
        """Bring the machine to the prepare phase of ``target``."""
        assert self.feed(wants(target, order)) == (Fetch(target),)
        (claim,) = self.fetched(target)
        assert isinstance(claim, Claim)
        self.feed(Claimed(claim.attempt, "won"))
        return claim.attempt

    def hold(self, *members: str) -> Attempt:
        """Bring the machine to the hold phase."""
        attempt = self.prepare()
        for member in members:
            self.report(member, "prepared", 1)
        assert self.state.phase == "hold"
        return attempt
