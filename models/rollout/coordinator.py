"""The rollout actor's state machine: ``step(state, event, now) -> (state, effects)``, one state a model.

    desired → fetched → claimed → prepared → held → committed
                 │         │         │         │
                 └─────────┴─────────┴─────────┴──→ aborted; the target rejected, retried later or superseded

What replicas are told follows from the state alone (``answers.py``). The rules of the protocol: the module
docstring of ``models/rollout/__init__.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.rollout import endings, policy
from models.rollout import membership as members
from models.rollout.messages import Attempt, Failure, Target
from models.rollout.state import (
    Admit,
    AdmitAsked,
    Announce,
    Audit,
    Claim,
    Claimed,
    Decide,
    Decided,
    Depose,
    DesiredRead,
    Effect,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    MemberDied,
    MemberLeft,
    MemberRecorded,
    MoveAlias,
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
    from models.rollout.messages import Report


def step(state: State, event: Event, now: float) -> Step:
    """Return the state after ``event`` and what is to be done, in order. ``now``: monotonic seconds, never falling."""
    if state.phase == "deposed":
        return state, ()
    state, effects = _take(state, event, now)
    # One event can complete several conditions at once (a death can make the last prepared member the only one).
    while True:
        advanced, more = _advance(state, now)
        effects += more
        if advanced is state:
            return state, effects
        state = advanced


def serving(state: State) -> Target | None:
    """Return what the fleet has committed."""
    return None if state.committed is None else state.committed.target


def choose(state: State, now: float) -> policy.Action:
    """Return the policy's action; before the first commit, what an earlier service had committed comes first.

    While that waits for its next try, the desired version is tried; once begun, it is not dropped for the other.
    """
    action = policy.next_action(state.desired, serving(state), state.rejections, state.pin, now)
    if state.committed is not None or state.restored is None:
        return action
    rolls = isinstance(action, policy.Roll)
    if rolls and state.target is not None and action == policy.Roll(state.target):
        return action
    first = policy.next_action(None, None, state.rejections, policy.Pin(state.restored, ("", "")), now)
    return action if rolls and isinstance(first, policy.Refuse) else first


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
            return _claim(state, now)
        case FetchFailed(target, failure):
            if state.phase != "fetch" or target != state.target:
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
            return members.died(state, replica, now), ()
        case MemberLeft(replica):
            return members.without(members.returned(state, replica), replica)
        case RollbackAsked(promotion):
            return _rollback(state, promotion)


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
    )


def _desired(state: State) -> Step:
    pin, desired = state.pin, state.desired
    if pin is None or desired is None:
        return state, ()
    if desired.promotion == pin.target.promotion or not policy.stands(pin, desired):
        return replace(state, pin=None), (SavePin(None),)
    now_serving = serving(state)
    if now_serving is not None and (now_serving.version, now_serving.digest) == (pin.target.version, pin.target.digest):
        return state, (MoveAlias(pin),)
    return state, ()


def _rollback(state: State, promotion: str) -> Step:
    committed = state.committed
    if committed is None or committed.back is None:
        return state, ()
    back = Target(committed.back.version, committed.back.digest, promotion)
    if state.desired is not None:
        over = (state.desired.promotion, state.desired.version)
    else:
        over = (committed.target.promotion, committed.target.version)
    pin = policy.Pin(back, over)
    return replace(state, pin=pin, not_before=0.0), (SavePin(pin),)


def _claim(state: State, now: float) -> Step:
    if state.target is None:
        return state, ()
    back = state.pin is not None and state.pin.target == state.target
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
        effects.append(MoveAlias(pin))
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


def _advance(state: State, now: float) -> Step:
    """Make one transition that the state alone allows; return the same object where there is none."""
    for replica, view in state.members.items():
        if view.died_at is not None and now >= view.died_at + state.timing.death_margin_s:
            buried, effects = members.without(state, replica)
            return replace(buried, deaths=state.deaths + _died_preparing(state, view)), effects
    match state.phase:
        case "idle":
            return _begin(state, now)
        case "fetch" | "bootstrap" | "prepare":
            return _prepare(state, now)
        case "hold":
            return _hold(state, now)
        case _:
            return state, ()


def _died_preparing(state: State, view: View) -> bool:
    # Only a death in the middle of loading speaks against the release; replicas also die with their machines.
    if state.attempt is None or view.report is None:
        return False
    return view.report.phase == "preparing" and view.report.attempt == state.attempt.key


def _begin(state: State, now: float) -> Step:
    action = choose(state, now)
    if now < state.not_before or not isinstance(action, policy.Roll):
        return state, ()
    if action.target != state.last:
        state = replace(state, last=action.target, deaths=0, hold_failures=0)
    return replace(state, phase="fetch", since=now, target=action.target), (Fetch(action.target),)


def _prepare(state: State, now: float) -> Step:  # noqa: PLR0911 - one return a case
    wanted = choose(state, now)
    if state.target is not None and wanted != policy.Roll(state.target):
        note = Failure("prepare", "a newer promotion superseded it", permanent=False)
        audit = Audit(state.target, "superseded", note)
        state, effects = endings.abort(replace(state, note="", not_before=0.0), now)
        return state, (audit, *effects)
    if state.phase == "bootstrap":
        return _bootstrap(state, now)
    if state.phase != "prepare" or state.attempt is None:
        return state, ()
    reports = _reports(state, state.attempt)
    failed = next((r for r in reports if r is not None and r.failure is not None), None)
    if failed is not None and failed.failure is not None:
        return endings.give_up(state, failed.failure, now)
    if state.deaths >= state.timing.max_deaths:
        return endings.give_up(state, endings.deadly(state.deaths), now)
    fresh = all(
        v.admitted and v.died_at is None and v.seen is not None and now - v.seen <= state.timing.fresh_s
        for v in state.members.values()
    )
    if reports and fresh and all(r is not None and r.phase == "prepared" for r in reports):
        return replace(state, phase="hold", since=now), ()
    if state.members and now - state.since > state.timing.prepare_timeout_s:
        late = sorted(m for m, r in zip(state.members, reports, strict=True) if r is None or r.phase != "prepared")
        why = f"{len(late) or 1} of {len(reports)} replicas did not prepare it in time; it is tried again later"
        return endings.give_up(state, Failure("load", why, permanent=False), now)
    return state, ()


def _bootstrap(state: State, now: float) -> Step:
    # A replica that is being recorded has loaded it: that outweighs all that died or are late.
    if state.joining:
        return state, ()
    if state.deaths >= state.timing.max_deaths:
        return endings.give_up(state, endings.deadly(state.deaths), now)
    if state.trying and now - min(state.trying.values()) > state.timing.prepare_timeout_s:
        why = f"{len(state.trying)} starting replicas did not load it in time; it is tried again later"
        return endings.give_up(state, Failure("load", why, permanent=False), now)
    return state, ()


def _hold(state: State, now: float) -> Step:
    if state.attempt is None:
        return state, ()
    reports = _reports(state, state.attempt)
    if reports and all(r is not None and r.phase == "holding" for r in reports):
        return replace(state, phase="commit"), (Decide(state.attempt.generation, "COMMIT"),)
    if now - state.since >= state.timing.ack_fraction * state.timing.hold_deadline_s or not reports:
        held = sum(r is not None and r.phase == "holding" for r in reports)
        state, audited = endings.missed(state, f"only {held} of {len(reports)} replicas held in time", now)
        state, effects = endings.abort(state, now)
        return state, (*audited, *effects)
    return state, ()


def _reports(state: State, attempt: Attempt) -> list[Report | None]:
    """Return each member's report where it is about ``attempt``, else None, in the members' order."""
    views = state.members.values()
    return [v.report if v.report is not None and v.report.attempt == attempt.key else None for v in views]
