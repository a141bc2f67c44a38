"""How an attempt of the coordinator ends without a commit: given up, aborted, rejected, to be tried again later."""

from __future__ import annotations

from dataclasses import replace

from models.rollout import policy
from models.rollout.messages import Failure
from models.rollout.state import Audit, Decide, Effect, State

Step = tuple[State, tuple[Effect, ...]]


def idle(state: State, now: float, *, note: str) -> State:
    """Return the state with nothing under way."""
    return replace(state, phase="idle", since=now, attempt=None, target=None, note=note, trying={}, stage=0, begun=None)


def missed(state: State, why: str, now: float) -> Step:
    """Note that a hold failed and wait before the next one."""
    wait = min(state.timing.hold_backoff_cap_s, state.timing.hold_backoff_s * 2.0 ** min(state.hold_failures, 30))
    state = replace(state, hold_failures=state.hold_failures + 1, not_before=now + wait, note=why)
    if state.target is None:
        return state, ()
    return state, (Audit(state.target, "aborted", Failure("hold", why, permanent=False)),)


def missed_and_abort(state: State, why: str, now: float) -> Step:
    """Note that a hold failed and abort the attempt; it is tried again later."""
    state, audited = missed(state, why, now)
    state, aborting = abort(state, now)
    return state, (*audited, *aborting)


def refuse(state: State, failure: Failure, now: float) -> Step:
    """Reject the target, for good or for a while."""
    target, timing = state.target, state.timing
    if target is None:
        return state, ()
    rejections = policy.reject(
        state.rejections, target, failure, now=now, backoff_s=timing.backoff_s, cap_s=timing.backoff_cap_s
    )
    state = replace(state, rejections=rejections, note=failure.reason)
    if target == state.restored and failure.permanent:
        state = replace(state, restored=None, restored_previous=None)
    return state, (Audit(target, "rejected", failure),)


def give_up(state: State, failure: Failure, now: float) -> Step:
    """Reject the target and abort its attempt."""
    state, audited = refuse(state, failure, now)
    state, aborting = abort(state, now)
    return state, (*audited, *aborting)


def abort(state: State, now: float) -> Step:
    """Have the attempt under way decided as ABORT."""
    if state.attempt is None:
        return idle(state, now, note=state.note), ()
    return replace(state, phase="abort", since=now), (Decide(state.attempt.generation, "ABORT"),)


def deadly(deaths: int, step: str) -> Failure:
    """Return the failure of a target that kills its replicas."""
    doing = "prepared" if step == "load" else "tried"
    return Failure(step, f"{deaths} replicas died while they {doing} it", permanent=True)
