"""A replica's state machine for one model: ``step(state, event, now) -> (state, effects)``.

    idle → preparing → prepared → holding → idle on the new generation (COMMIT) or on the old one (ABORT)

A replica that holds never decides alone: when its deadline passes it puts ABORT and obeys what stands. While the
ledger cannot be reached it keeps holding; after ``in_doubt_limit_s`` it fails its requests rather than answer with
weights that may be superseded. One that is not held and has lost the actor serves on: nobody can commit without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from models.rollout.messages import Report

if TYPE_CHECKING:
    from models.rollout.ledger import Verdict
    from models.rollout.messages import Attempt, Directive, Failure, MemberPhase

IN_DOUBT = "this replica cannot learn which weights are current; retry, another replica may answer"


@dataclass(frozen=True, slots=True)
class MemberState:
    """All that a replica knows of its place in the fleet. Moments are monotonic seconds.

    generation, digest: what it answers with. incarnation: newest life of the actor that it has heard of.
    attempt: what ``phase`` is about. candidate: digest loaded beside the active one for some attempt.
    settled: highest generation whose decision it has obeyed. deadline: of the hold. asking: the ledger was asked.
    failing: its requests are being refused because it is in doubt. outside: the actor does not count it as a member.
    """

    replica: str
    generation: int
    digest: str
    hold_deadline_s: float = 0.5
    in_doubt_limit_s: float = 5.0
    seq: int = 0
    incarnation: int = 0
    phase: MemberPhase = "idle"
    attempt: Attempt | None = None
    candidate: str | None = None
    failure: Failure | None = None
    settled: int = 0
    deadline: float = 0.0
    asking: bool = False
    failing: bool = False
    outside: bool = False


# Events


@dataclass(frozen=True, slots=True)
class Directed:
    """The actor answered a poll."""

    directive: Directive


@dataclass(frozen=True, slots=True)
class Prepared:
    """The attempt's release is loaded, warm and sees."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """The attempt's release may not serve here."""

    attempt: Attempt
    failure: Failure


@dataclass(frozen=True, slots=True)
class Ruled:
    """The ledger says what stands for a generation."""

    generation: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class LedgerSilent:
    """The ledger could not be asked."""

    generation: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The replica was admitted on ``generation`` after it had been outside."""

    generation: int
    digest: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Directed | Prepared | PrepareFailed | Ruled | LedgerSilent | Joined | Tick


# Effects


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load, warm and test the attempt's release in the background; answer with Prepared or PrepareFailed."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the preparation under way; Prepared follows only where it had just ended."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop the candidate of this digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Start no further batch."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Start batches again."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Make the prepared release the active one, in one tick of the loop."""

    digest: str
    generation: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Put ABORT for the generation; answer with Ruled or LedgerSilent."""

    generation: int


@dataclass(frozen=True, slots=True)
class FailAll:
    """Refuse queued and new requests with this message; None ends it."""

    message: str | None


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Load what is committed and ask to be admitted, holding all the while; answer with Joined."""


Effect = Prepare | Cancel | Discard | Hold | Resume | Flip | Ask | FailAll | Rejoin
Step = tuple[MemberState, tuple[Effect, ...]]


def report(state: MemberState) -> tuple[MemberState, Report]:
    """Return the report to send now and the state that has sent it."""
    state = replace(state, seq=state.seq + 1)
    attempt = state.attempt.key if state.attempt else None
    return state, Report(
        replica=state.replica,
        seq=state.seq,
        generation=state.generation,
        digest=state.digest,
        phase=state.phase,
        attempt=attempt,
        candidate=state.candidate,
        failure=state.failure,
    )


def step(state: MemberState, event: Event, now: float) -> Step:  # noqa: PLR0911 - one arm an event
    """Return the state after ``event`` and what is to be done, in order. ``now``: monotonic seconds, never falling."""
    match event:
        case Directed(directive):
            return _directed(state, directive, now)
        case Prepared(attempt):
            return _prepared(state, attempt)
        case PrepareFailed(attempt, failure):
            if state.phase != "preparing" or attempt != state.attempt:
                return state, ()
            return replace(state, phase="failed", failure=failure), ()
        case Ruled(generation, verdict):
            if state.phase != "holding" or state.attempt is None or generation != state.attempt.generation:
                return state, ()
            return _go(state) if verdict == "COMMIT" else _release(state)
        case LedgerSilent():
            state = replace(state, asking=False)
            return _doubt(state, now)
        case Joined(generation, digest):
            return _joined(state, generation, digest)
        case Tick():
            return _tick(state, now)


def _directed(state: MemberState, directive: Directive, now: float) -> Step:  # noqa: PLR0911 - one arm a kind
    if directive.incarnation < state.incarnation or state.outside:
        return state, ()
    state = replace(state, incarnation=directive.incarnation)
    match directive.kind:
        case "prepare" if directive.attempt is not None:
            return _prepare(state, directive.attempt)
        case "hold" if directive.attempt is not None:
            return _hold(state, directive.attempt, now)
        case "go" if directive.attempt is not None:
            mine = state.attempt is not None and state.attempt.key == directive.attempt.key
            return _go(state) if mine and state.phase in ("prepared", "holding") else (state, ())
        case "release":
            mine = state.attempt is not None and state.attempt.generation == directive.generation
            return _release(state) if mine and state.phase == "holding" else (state, ())
        case "stay":
            return _stay(state, directive.keep)
        case "rejoin":
            return _leave(state, now)
        case _:
            return state, ()


def _prepare(state: MemberState, attempt: Attempt) -> Step:
    old = attempt.generation <= max(state.generation, state.settled)
    if old or state.phase == "holding" or (state.attempt is not None and attempt.key <= state.attempt.key):
        return state, ()
    state, effects = _drop(state, attempt.target.digest)
    return replace(state, phase="preparing", attempt=attempt), (*effects, Prepare(attempt))


def _prepared(state: MemberState, attempt: Attempt) -> Step:
    digest = attempt.target.digest
    if state.phase == "preparing" and attempt == state.attempt:
        return replace(state, phase="prepared", candidate=digest), ()
    # It was given up just as its loading ended: without this, it would stay in memory beside whatever follows.
    wanted = (state.digest, state.candidate, state.attempt.target.digest if state.attempt else None)
    return state, () if digest in wanted else (Discard(digest),)


def _hold(state: MemberState, attempt: Attempt, now: float) -> Step:
    if state.phase != "prepared" or state.attempt != attempt:
        return state, ()
    return replace(state, phase="holding", deadline=now + state.hold_deadline_s, asking=False), (Hold(),)


def _go(state: MemberState) -> Step:
    if state.attempt is None:
        return state, ()
    digest, generation = state.attempt.target.digest, state.attempt.generation
    effects: list[Effect] = [Flip(digest, generation), Resume()]
    if state.failing:
        effects.append(FailAll(None))
    return replace(_idle(state), generation=generation, digest=digest, candidate=None, settled=generation), tuple(
        effects
    )


def _release(state: MemberState) -> Step:
    if state.attempt is None:
        return state, ()
    effects: tuple[Effect, ...] = (Resume(), FailAll(None)) if state.failing else (Resume(),)
    return replace(_idle(state), settled=state.attempt.generation), effects


def _stay(state: MemberState, keep: str | None) -> Step:
    if state.phase == "holding":
        return state, ()
    return _drop(state, keep)


def _drop(state: MemberState, keep: str | None) -> Step:
    """Give up the attempt under way and any candidate other than ``keep``."""
    effects: list[Effect] = [Cancel()] if state.phase == "preparing" else []
    candidate = state.candidate
    if candidate not in (None, keep):
        effects.append(Discard(candidate))
        candidate = None
    return replace(_idle(state), candidate=candidate), tuple(effects)


def _leave(state: MemberState, now: float) -> Step:
    # Whoever commits now does not wait for this replica: it may start no batch until it is admitted again.
    left, effects = _drop(state, None)
    return replace(left, outside=True, deadline=now, failing=state.failing), (Hold(), *effects, Rejoin())


def _joined(state: MemberState, generation: int, digest: str) -> Step:
    effects: tuple[Effect, ...] = (Resume(), FailAll(None)) if state.failing else (Resume(),)
    state = replace(_idle(state), outside=False, candidate=None)
    return replace(state, generation=generation, digest=digest, settled=max(state.settled, generation)), effects


def _tick(state: MemberState, now: float) -> Step:
    state, effects = _doubt(state, now)
    if state.phase != "holding" or state.attempt is None or state.asking or now < state.deadline:
        return state, effects
    return replace(state, asking=True), (*effects, Ask(state.attempt.generation))


def _doubt(state: MemberState, now: float) -> Step:
    waiting = state.phase == "holding" or state.outside
    if state.failing or not waiting or now < state.deadline + state.in_doubt_limit_s:
        return state, ()
    return replace(state, failing=True), (FailAll(IN_DOUBT),)


def _idle(state: MemberState) -> MemberState:
    return replace(state, phase="idle", attempt=None, failure=None, deadline=0.0, asking=False, failing=False)
