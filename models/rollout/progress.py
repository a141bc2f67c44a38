"""The coordinator's transitions that the state alone allows: what goes on when a condition is met or time is up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.rollout import endings, policy, proving
from models.rollout import membership as members
from models.rollout.choice import choose, next_step, order_of, reports, step_under_way
from models.rollout.gates import latency_gate, refusal
from models.rollout.messages import Failure
from models.rollout.state import Audit, Decide, Fetch, Note, State, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.rollout.endings import Step
    from models.rollout.messages import Report

DROPPABLE = frozenset({"fetch", "judge", "bootstrap", "prepare", "trial"})
"""Phases out of which a newer promotion or a rollback takes the target at once."""


def advance(state: State, now: float) -> Step:
    """Make one transition that the state alone allows; return the same object where there is none."""
    found = members.bury(state, now)
    if found is not None:
        buried, view, effects = found
        trying = _died_trying(state, view)
        lost = state.lost + (not trying and _died_on_probation(state, view))
        return replace(buried, deaths=state.deaths + trying, lost=lost), effects
    for look in (proving.retired, lambda state: proving.watch(state, now)):
        moved, effects = look(state)
        if moved is not state:
            return moved, effects
    if state.phase == "idle":
        return _begin(state, now)
    if state.phase in DROPPABLE:
        return _superseded(state, now) or _go_on(state, now)
    return _hold(state, now) if state.phase == "hold" else (state, ())


def _go_on(state: State, now: float) -> Step:
    if state.phase == "bootstrap":
        return _bootstrap(state, now)
    if state.phase in ("prepare", "trial"):
        ended = _ended(state, now)
        if ended is not None:
            return ended
        return _prepare(state, now) if state.phase == "prepare" else proving.advance(state, now)
    return state, ()


def _died_trying(state: State, view: View) -> bool:
    # Only a death in the middle of loading or trying it speaks against the release; replicas also die with their
    # machines.
    if state.attempt is None or view.report is None or view.report.attempt != state.attempt.key:
        return False
    return view.report.phase == "preparing" or view.report.trial > 0


def _died_on_probation(state: State, view: View) -> bool:
    if state.probation is None or state.committed is None or view.report is None:
        return False
    return view.report.generation == state.committed.generation


def _begin(state: State, now: float) -> Step:
    action = choose(state, now)
    if now < state.not_before or not isinstance(action, policy.Roll):
        return state, ()
    target = action.target
    noted: tuple[Note, ...] = ()
    if target != state.last:
        order = order_of(state, target)
        state = replace(state, last=target, order=order, verdicts=(), deaths=0, hold_failures=0, advanced=0)
        noted = (Note(target, "desired"),)
    return replace(state, phase="fetch", since=now, target=target), (*noted, Fetch(target))


def _superseded(state: State, now: float) -> Step | None:
    if state.target is None or choose(state, now) == policy.Roll(state.target):
        return None
    newer = Failure(state.phase, "a newer promotion superseded it", permanent=False)
    # What a rollback took back while its generation was being claimed was written down then.
    known = policy.refused(state.rejections, state.target)
    audit = () if known else (Audit(state.target, "superseded", newer),)
    state, effects = endings.abort(replace(state, note="", not_before=0.0), now)
    return state, (*audit, *effects)


def _ended(state: State, now: float) -> Step | None:
    """Give the attempt up where a member failed, too many died, or one has put ABORT."""
    attempt = state.attempt
    if attempt is None:
        return None
    found = reports(state, attempt)
    failed = next((r for r in found if r is not None and r.failure is not None), None)
    if failed is not None and failed.failure is not None:
        return endings.give_up(state, failed.failure, now)
    if state.deaths >= state.timing.max_deaths:
        step = step_under_way(state)
        return endings.give_up(state, endings.deadly(state.deaths, "load" if step is None else step.mode), now)
    views = [v.report for v in state.members.values() if v.report is not None]
    if any(r.settled >= attempt.generation for r in views):
        # It waited in vain for the canary step to begin: every member resumes, and all of it is tried again later.
        return endings.missed_and_abort(state, "a replica's hold ran out before the canary began", now)
    return None


def _prepare(state: State, now: float) -> Step:
    attempt = state.attempt
    if attempt is None:
        return state, ()
    found = reports(state, attempt)
    fresh = now >= state.hold_from and all(
        v.admitted and v.died_at is None and v.seen is not None and now - v.seen <= state.timing.fresh_s
        for v in state.members.values()
    )
    ready = [r for r in found if r is not None and r.phase == "prepared" and r.trial == state.stage]
    if ready and fresh and len(ready) == len(found):
        return _prepared(state, ready, now)
    if state.members and now - state.since > state.timing.prepare_timeout_s:
        late = len(found) - len(ready)
        why = f"{late or 1} of {len(found)} replicas did not prepare it in time; it is tried again later"
        return endings.give_up(state, Failure("load", why, permanent=False), now)
    return state, ()


def _prepared(state: State, ready: Sequence[Report], now: float) -> Step:
    """All members have loaded the target and run the step under way: judge its latency, then go on with what is next.

    A canary step begins like a commit, in a hold: a client that is answered by the candidate somewhere must not be
    answered by the old version elsewhere, where the step would begin a moment later.
    """
    noted: tuple[Note, ...] = ()
    target = state.target
    if state.stage == 0 and target is not None:
        state = _timed(state, ready)
        refused = refusal(verdict for verdict in state.verdicts if verdict.gate == "latency")
        if refused is not None:
            return endings.give_up(state, refused, now)
        told = "; ".join(verdict.reason for verdict in state.verdicts if verdict.gate == "latency")
        noted = (Note(target, "prepared", f"by {len(ready)} replicas" + (f"; {told}" if told else "")),)
    step = next_step(state)
    if step is not None and not step.canary:
        return proving.begin(state, step, now), noted
    return replace(state, phase="hold", since=now), noted


def _timed(state: State, ready: Sequence[Report]) -> State:
    """Return the state with the verdict of the latency gate, over the replica whose ratio is the median.

    Where no replica could measure, the verdict says so.
    """
    if state.attempt is None or state.attempt.rollback:
        return state
    pairs = sorted((r.golden_ms for r in ready if r.golden_ms is not None), key=lambda pair: pair[0] / pair[1])
    ours, theirs = pairs[(len(pairs) - 1) // 2] if pairs else (None, None)
    verdict = latency_gate(theirs, ours, state.order, factor=state.timing.latency_factor)
    others = tuple(each for each in state.verdicts if each.gate != verdict.gate)
    return replace(state, verdicts=(*others, verdict))


def _bootstrap(state: State, now: float) -> Step:
    # A replica that is being recorded has loaded it: that outweighs all that died or are late.
    if state.joining:
        return state, ()
    if state.deaths >= state.timing.max_deaths:
        return endings.give_up(state, endings.deadly(state.deaths, "load"), now)
    if state.trying and now - min(state.trying.values()) > state.timing.prepare_timeout_s:
        why = f"{len(state.trying)} starting replicas did not load it in time; it is tried again later"
        return endings.give_up(state, Failure("load", why, permanent=False), now)
    return state, ()


def _hold(state: State, now: float) -> Step:
    if state.attempt is None:
        return state, ()
    found = reports(state, state.attempt)
    held = sum(r is not None and r.phase == "holding" and r.trial == state.stage for r in found)
    if found and held == len(found):
        step = next_step(state)
        if step is not None:
            return proving.begin(state, step, now), ()
        return replace(state, phase="commit"), (Decide(state.attempt.generation, "COMMIT"),)
    if now - state.since >= state.timing.ack_fraction * state.timing.hold_deadline_s or not found:
        return endings.missed_and_abort(state, f"only {held} of {len(found)} replicas held in time", now)
    return state, ()
