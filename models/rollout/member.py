"""A replica's state machine for one model: ``step(state, event, now) -> (state, effects)``.

    idle → preparing → prepared → holding → idle on the new generation (COMMIT) or on the old one (ABORT)
                          ↑          │
                          └──────────┘  a canary step begins; a shadow begins without a hold

A replica that holds never decides alone: when its deadline passes it puts ABORT and obeys what stands. While the
ledger cannot be reached it keeps holding; after ``in_doubt_limit_s`` it fails its requests rather than answer with
weights that may be superseded. One that is not held and has lost the actor serves on: nobody can commit without it,
unless its host is cut off and counted dead. Strict mode covers that: see ``isolation.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from models.rollout import isolation
from models.rollout.isolation import CUT_OFF
from models.rollout.member_steps import (
    Ask,
    BeginTrial,
    Cancel,
    Confirm,
    Confirmed,
    Directed,
    Discard,
    Effect,
    EndTrial,
    Event,
    FailAll,
    Flip,
    Hold,
    Joined,
    LedgerSilent,
    Prepare,
    Prepared,
    PrepareFailed,
    Rejoin,
    Resume,
    Ruled,
    Tick,
    TrialBegun,
    TrialFailed,
    Unconfirmed,
)
from models.rollout.messages import Report

if TYPE_CHECKING:
    from models.rollout.messages import Attempt, Directive, Failure, MemberPhase
    from models.rollout.trial import TrialStep

__all__ = [
    "CUT_OFF",
    "IN_DOUBT",
    "Ask",
    "BeginTrial",
    "Cancel",
    "Confirm",
    "Confirmed",
    "Directed",
    "Discard",
    "Effect",
    "EndTrial",
    "Event",
    "FailAll",
    "Flip",
    "Hold",
    "Joined",
    "LedgerSilent",
    "MemberState",
    "Prepare",
    "PrepareFailed",
    "Prepared",
    "Rejoin",
    "Resume",
    "Ruled",
    "Step",
    "Tick",
    "TrialBegun",
    "TrialFailed",
    "Unconfirmed",
    "refusing",
    "report",
    "step",
]

IN_DOUBT = "this replica cannot learn which weights are current; retry, another replica may answer"


@dataclass(frozen=True, slots=True)
class MemberState:
    """All that a replica knows of its place in the fleet. Moments are monotonic seconds.

    generation, digest: what it answers with. incarnation: newest life of the actor that it has heard of.
    attempt: what ``phase`` is about. candidate: digest loaded beside the active one for some attempt.
    settled: highest generation whose decision it has obeyed. deadline: of the hold. asking: the ledger was asked.
    failing: its requests are being refused, see ``refusing``. outside: the actor does not count it as a member.
    trial: number of the attempt's trial step that runs here, 0 for none. golden_ms: see Prepared.
    isolation_s: of strict mode, infinity without. heard: when it last asked the ledger and was a member; looking: the
    ledger is being asked; look_at: when it will be asked next.
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
    trial: int = 0
    golden_ms: tuple[float, float] | None = None
    isolation_s: float = inf
    heard: float = 0.0
    looking: bool = False
    look_at: float = 0.0


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
        settled=state.settled,
        trial=state.trial,
        golden_ms=state.golden_ms,
    )


def refusing(state: MemberState) -> str | None:
    """Return why requests are being refused, None where they are not."""
    if not state.failing:
        return None
    return IN_DOUBT if state.outside or state.phase == "holding" else CUT_OFF


def step(state: MemberState, event: Event, now: float) -> Step:
    """Return the state after ``event`` and what is to be done, in order. ``now``: monotonic seconds, never falling."""
    state, effects = _take(state, event, now)
    return isolation.guard(state, effects, now)


def _take(state: MemberState, event: Event, now: float) -> Step:  # noqa: C901, PLR0911, PLR0912 - one arm an event
    match event:
        case Directed(directive):
            return _directed(state, directive, now)
        case Prepared(attempt, golden_ms):
            return _prepared(state, attempt, golden_ms)
        case PrepareFailed(attempt, failure):
            if state.phase != "preparing" or attempt != state.attempt:
                return state, ()
            return replace(state, phase="failed", failure=failure), ()
        case TrialBegun(attempt, number):
            return _begun(state, attempt, number, now)
        case TrialFailed(attempt, failure):
            return _not_begun(state, attempt, failure, now)
        case Ruled(generation, verdict):
            if state.phase != "holding" or state.attempt is None or generation != state.attempt.generation:
                return state, ()
            return _go(state) if verdict == "COMMIT" else _release(state)
        case LedgerSilent():
            state = replace(state, asking=False)
            return _doubt(state, now)
        case Joined():
            return _joined(state, event, now)
        case Confirmed():
            state, struck = isolation.heard(state, event, now)
            return _leave(state, now) if struck else (state, ())
        case Unconfirmed():
            return isolation.unheard(state, now), ()
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
            return _hold(state, directive, now)
        case "trial" if directive.attempt is not None and directive.step is not None:
            return _try(state, directive.attempt, directive.step, now)
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


def _prepared(state: MemberState, attempt: Attempt, golden_ms: tuple[float, float] | None) -> Step:
    digest = attempt.target.digest
    if state.phase == "preparing" and attempt == state.attempt:
        return replace(state, phase="prepared", candidate=digest, golden_ms=golden_ms), ()
    # It was given up just as its loading ended: without this, it would stay in memory beside whatever follows.
    if state.attempt is not None and digest == state.attempt.target.digest:
        return replace(state, candidate=digest), ()
    return state, () if digest in (state.digest, state.candidate) else (Discard(digest),)


def _try(state: MemberState, attempt: Attempt, step: TrialStep, now: float) -> Step:
    if state.phase not in ("prepared", "holding") or state.attempt != attempt or step.number <= state.trial:
        return state, ()
    return state, () if _too_late(state, now) else (BeginTrial(attempt, step),)


def _begun(state: MemberState, attempt: Attempt, number: int, now: float) -> Step:
    if state.phase not in ("prepared", "holding") or state.attempt != attempt:
        return state, (EndTrial(),)
    state = replace(state, trial=number)
    if state.phase == "prepared" or _too_late(state, now):
        return state, ()
    return replace(state, phase="prepared", deadline=0.0), (Resume(),)


def _not_begun(state: MemberState, attempt: Attempt, failure: Failure, now: float) -> Step:
    if state.phase not in ("prepared", "holding") or state.attempt != attempt:
        return state, ()
    if state.phase == "prepared":
        return replace(state, phase="failed", failure=failure, trial=0), (EndTrial(),)
    # Others may answer clients with the candidate by now: none of these may be answered here before all of it is off.
    return replace(state, failure=failure, deadline=min(state.deadline, now)), ()


def _too_late(state: MemberState, now: float) -> bool:
    """Return whether it has held for so long that only the ledger can tell what becomes of the attempt."""
    return state.phase == "holding" and now >= state.deadline


def _hold(state: MemberState, directive: Directive, now: float) -> Step:
    if state.phase != "prepared" or state.attempt != directive.attempt or state.trial != directive.stage:
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
    return replace(_idle(state), settled=state.attempt.generation), (*_end_trial(state), *effects)


def _stay(state: MemberState, keep: str | None) -> Step:
    if state.phase == "holding":
        return state, ()
    return _drop(state, keep)


def _drop(state: MemberState, keep: str | None) -> Step:
    """Give up the attempt under way, its trial and any candidate other than ``keep``."""
    effects: list[Effect] = [Cancel()] if state.phase == "preparing" else [*_end_trial(state)]
    candidate = state.candidate
    if candidate not in (None, keep):
        effects.append(Discard(candidate))
        candidate = None
    return replace(_idle(state), candidate=candidate, failing=state.failing), tuple(effects)


def _leave(state: MemberState, now: float) -> Step:
    # Whoever commits now does not wait for this replica: it may start no batch until it is admitted again.
    left, effects = _drop(state, None)
    return replace(left, outside=True, deadline=now), (Hold(), *effects, Rejoin())


def _joined(state: MemberState, joined: Joined, now: float) -> Step:
    effects: tuple[Effect, ...] = (Resume(), FailAll(None)) if state.failing else (Resume(),)
    state = replace(_idle(state), outside=False, candidate=None, heard=max(state.heard, joined.asked), look_at=now)
    settled = max(state.settled, joined.generation)
    return replace(state, generation=joined.generation, digest=joined.digest, settled=settled), effects


def _tick(state: MemberState, now: float) -> Step:
    state, doubt = _doubt(state, now)
    state, looks = isolation.look(state, now)
    effects = (*doubt, *looks)
    if state.phase != "holding" or state.attempt is None or state.asking or now < state.deadline:
        return state, effects
    return replace(state, asking=True), (*effects, Ask(state.attempt.generation))


def _doubt(state: MemberState, now: float) -> Step:
    waiting = state.phase == "holding" or state.outside
    if state.failing or not waiting or now < state.deadline + state.in_doubt_limit_s:
        return state, ()
    return replace(state, failing=True), (FailAll(IN_DOUBT),)


def _end_trial(state: MemberState) -> tuple[Effect, ...]:
    return (EndTrial(),) if state.trial else ()


def _idle(state: MemberState) -> MemberState:
    return replace(
        state,
        phase="idle",
        attempt=None,
        failure=None,
        deadline=0.0,
        asking=False,
        failing=False,
        trial=0,
        golden_ms=None,
    )
