"""The rollout actor's state machine: ``step(state, event, now) -> (state, effects)``, one state a model.

    desired → fetched → judged → claimed → prepared → (shadow → canary →) held → committed → proven
                 │         │        │          │             │              │                  │
                 └─────────┴────────┴──────────┴─────────────┴──────────────┴──→ aborted: the  └──→ rolled back
                                                        target rejected, retried later or superseded

Here: what an event changes. What then follows by itself: ``progress.py``; what replicas are told: ``answers.py``, from
the state alone. The rules of the protocol: the module docstring of ``models/rollout/__init__.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.rollout import endings, policy, progress, proving, rollback
from models.rollout import membership as members
from models.rollout.choice import returns, serving
from models.rollout.gates import refusal
from models.rollout.messages import Attempt
from models.rollout.state import (
    Admit,
    AdmitAsked,
    Announce,
    Claim,
    Claimed,
    Decided,
    Depose,
    DesiredRead,
    Effect,
    Event,
    Fetched,
    FetchFailed,
    Judge,
    Judged,
    JudgeFailed,
    MemberDied,
    MemberForgotten,
    MemberLeft,
    MemberRecorded,
    MoveAlias,
    Note,
    Polled,
    Recovered,
    RollbackAsked,
    SavePin,
    State,
    Tick,
    TryTold,
    View,
)

if TYPE_CHECKING:
    from models.rollout.endings import Step
    from models.rollout.messages import Report, Target


def step(state: State, event: Event, now: float) -> Step:
    """Return the state after ``event`` and what is to be done, in order. ``now``: monotonic seconds, never falling."""
    if state.phase == "deposed":
        return state, ()
    state, effects = _take(state, event, now)
    # One event can complete several conditions at once (a death can make the last prepared member the only one).
    while True:
        advanced, more = progress.advance(state, now)
        effects += more
        if advanced is state:
            return state, effects
        state = advanced


def _take(state: State, event: Event, now: float) -> Step:  # noqa: C901, PLR0911, PLR0912 - one arm an event
    match event:
        case Tick():
            return state, ()
        case Recovered():
            return _recovered(state, event, now), ()
        case DesiredRead(desired):
            # An answer that names nothing never unmakes what an earlier one named.
            return _desired(replace(state, desired=desired or state.desired, heard=True))
        case Fetched(target):
            if state.phase != "fetch" or target != state.target:
                return state, ()
            return _fetched(state, target, now)
        case Judged(target, verdicts):
            if state.phase != "judge" or target != state.target:
                return state, ()
            return _judged(replace(state, verdicts=verdicts), target, now)
        case FetchFailed(target, failure) | JudgeFailed(target, failure):
            if state.phase not in ("fetch", "judge") or target != state.target:
                return state, ()
            state, audited = endings.refuse(state, failure, now)
            return endings.idle(state, now, note=failure.reason), audited
        case Claimed(attempt, outcome):
            return _claimed(state, attempt, outcome, now)
        case Decided(generation, verdict):
            if state.attempt is None or generation != state.attempt.generation:
                return state, ()
            return _committed(state, now) if verdict == "COMMIT" else _aborted(state, now)
        case Polled(report):
            return _polled(state, report, now), ()
        case TryTold(replica, generation):
            return members.told(state, replica, generation, now), ()
        case AdmitAsked(replica):
            return members.admit(members.returned(state, replica), event, now)
        case MemberRecorded(replica, in_charge):
            return members.recorded(state, replica, in_charge=in_charge)
        case MemberDied(replica):
            return members.died(state, replica, now)
        case MemberForgotten(replica):
            return members.forgotten(state, replica, now), ()
        case MemberLeft(replica):
            return members.without(members.returned(state, replica), replica)
        case RollbackAsked(promotion):
            return rollback.roll_back(state, promotion, now)


def _recovered(state: State, event: Recovered, now: float) -> State:
    found = event.recovery
    return replace(
        state,
        phase="idle",
        since=now,
        incarnation=event.incarnation,
        committed=found.committed,
        top=max(found.top, event.restored_generation),
        aborted=found.aborted,
        members=dict.fromkeys(found.members, View(admitted=True)),
        restored=event.restored,
        restored_previous=event.restored_previous,
        pin=event.pin,
        rejections=event.rejections,
        # Members tell what they have seen only for a while after their flip, however late this life begins.
        probation=now if found.committed is not None and proving.on_probation(state, found.committed) else None,
        hold_from=now + state.timing.burial_s if state.timing.strict and found.committed is not None else now,
    )


def _desired(state: State) -> Step:
    pin, desired = state.pin, state.desired
    if pin is None or desired is None:
        return state, ()
    if desired.promotion == pin.target.promotion or not policy.stands(pin, desired):
        return replace(state, pin=None), (SavePin(None),)
    saved: tuple[Effect, ...] = ()
    if policy.follows(pin, desired):
        pin = replace(pin, over=(desired.promotion, desired.version), replaces="")
        state, saved = replace(state, pin=pin), (SavePin(pin),)
    now_serving = serving(state)
    if now_serving is not None and (now_serving.version, now_serving.digest) == (pin.target.version, pin.target.digest):
        state, arrived = _arrived(state, pin)
        return state, (*saved, *arrived)
    return state, saved


def _arrived(state: State, pin: policy.Pin) -> Step:
    """Have the alias follow a rollback whose target serves; a passing one gives way to what is promoted."""
    return (replace(state, pin=None), (SavePin(None),)) if pin.passing else (state, (MoveAlias(pin),))


def _fetched(state: State, target: Target, now: float) -> Step:
    fetched, before = Note(target, "fetched"), serving(state)
    if before is None or returns(state, target):
        state, effects = _claim(state, now)
        return state, (fetched, *effects)
    return replace(state, phase="judge", since=now), (fetched, Judge(target, before, state.order))


def _judged(state: State, target: Target, now: float) -> Step:
    refused = refusal(state.verdicts)
    if refused is not None:
        state, audited = endings.refuse(state, refused, now)
        return endings.idle(state, now, note=refused.reason), audited
    told = "; ".join(f"{each.gate}: {each.reason}" for each in state.verdicts)
    figures = {f"{each.gate}_{name}": value for each in state.verdicts for name, value in each.measured.items()}
    state, effects = _claim(state, now)
    return state, (Note(target, "judged", told, figures), *effects)


def _claim(state: State, now: float) -> Step:
    if state.target is None:
        return state, ()
    back = returns(state, state.target)
    attempt = Attempt(state.top + 1, state.incarnation, state.target, _before(state, state.target), back)
    return replace(state, phase="claim", since=now, attempt=attempt), (Claim(attempt),)


def _before(state: State, target: Target) -> Target | None:
    """Return what served before ``target`` will: of this cluster, or of the earlier service."""
    restored = state.restored
    if state.committed is not None or restored is None:
        return serving(state)
    same = (restored.version, restored.digest) == (target.version, target.digest)
    return state.restored_previous if same else restored


def _claimed(state: State, attempt: Attempt, outcome: str, now: float) -> Step:
    if state.phase != "claim" or attempt != state.attempt:
        return state, ()
    if outcome == "deposed":
        return replace(state, phase="deposed", attempt=None, target=None), (Depose(),)
    state = replace(state, top=max(state.top, attempt.generation))
    if outcome == "lost":
        return _claim(replace(state, aborted=state.aborted | {attempt.generation}), now)
    return replace(state, phase="bootstrap" if state.committed is None else "prepare", since=now, trying={}), ()


def _polled(state: State, report: Report, now: float) -> State:
    view = state.members.get(report.replica)
    if view is None or (view.report is not None and report.seq <= view.report.seq):
        return state
    if state.timing.strict and view.died_at is not None:
        # It is struck off already: it has to be admitted again.
        return state
    # A report after the proof shows that the process still ran then: it needs a new proof.
    return members.with_view(state, report.replica, View(view.admitted, now, None, report))


def _committed(state: State, now: float) -> Step:
    attempt = state.attempt
    if attempt is None:
        return state, ()
    effects: list[Effect] = [Announce(attempt, state.since)]
    effects += [Admit(r, "admitted") for r in sorted(state.joining) if state.members[r].admitted]
    pin = state.pin
    if pin is not None and pin.target == attempt.target:
        state, arrived = _arrived(state, pin)
        effects += arrived
    watched = state.committed is not None and proving.on_probation(state, attempt)
    accepted = state.order if state.last == attempt.target else None
    state = replace(state, probation=now if watched else None, lost=0, accepted=accepted, retiring=serving(state))
    state = endings.idle(state, now, note="")
    return replace(
        state,
        committed=attempt,
        aborted=frozenset(g for g in state.aborted if g > attempt.generation),
        joining=frozenset(r for r in state.joining if not state.members[r].admitted),
        hold_failures=0,
        restored=None,
    ), tuple(effects)


def _aborted(state: State, now: float) -> Step:
    attempt = state.attempt
    if attempt is None:
        return state, ()
    effects: list[Effect] = []
    if state.phase == "commit":
        # A replica's deadline passed first: every holder resumes the old generation; try again later.
        state, audited = endings.missed(state, "a replica's hold ran out before the commit", now)
        effects += audited
    if state.committed is None:
        effects += [Admit(r, "stale") for r in sorted(state.joining)]
        state = replace(state, joining=frozenset())
    state = replace(endings.idle(state, now, note=state.note), aborted=state.aborted | {attempt.generation})
    return state, tuple(effects)
