"""What serves of a model, what is to serve, and how far the trial of a candidate has come: read off the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.rollout import policy, trial
from models.rollout.messages import Target
from models.rollout.order import PLAIN, Order

if TYPE_CHECKING:
    from models.rollout.messages import Attempt, Report
    from models.rollout.state import State
    from models.rollout.trial import TrialStep


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


def pending(state: State) -> Target | None:
    """Return what a promotion brings to the fleet and has not committed yet, or is to bring once it is tried again.

    None where there is nothing of the kind: a rollback is none, nor is what was refused for good.
    """
    if state.target is not None:
        return None if returns(state, state.target) else state.target
    if state.pin is not None and policy.stands(state.pin, state.desired):
        return None
    wanted, current = policy.wanted(state.desired, state.rejections), serving(state)
    if wanted is None or (current is not None and (current.version, current.digest) == (wanted.version, wanted.digest)):
        return None
    return wanted


def returns(state: State, target: Target) -> bool:
    """Return whether ``target`` is what a rollback returns to: it has served before and is judged by nobody."""
    return state.pin is not None and state.pin.target == target


def order_of(state: State, target: Target) -> Order:
    """Return what the promotion of ``target`` asked for; nothing special where no promotion names it."""
    desired = state.desired
    if desired is None or Target(desired.version, desired.digest, desired.promotion) != target:
        return PLAIN
    return desired.order


def accepted_order(state: State) -> Order | None:
    """Return what the promotion of the committed version asked for, None where nobody can tell any more.

    An actor that came after its commit reads it with the alias, as long as that still names this promotion.
    """
    if state.accepted is not None or state.committed is None or state.desired is None:
        return state.accepted
    desired = state.desired
    named = Target(desired.version, desired.digest, desired.promotion) == state.committed.target
    return desired.order if named else None


def next_step(state: State) -> TrialStep | None:
    """Return the trial step that comes next, None where the commit does. The first version ever is not tried."""
    if state.committed is None or state.attempt is None or state.attempt.rollback:
        return None
    steps = trial.steps(state.order)
    return steps[state.advanced] if state.advanced < len(steps) else None


def step_under_way(state: State) -> TrialStep | None:
    """Return the trial step that the members run, None where they run none."""
    return trial.steps(state.order)[state.stage - 1] if state.stage else None


def reports(state: State, attempt: Attempt) -> list[Report | None]:
    """Return each member's report where it is about ``attempt``, else None, in the members' order."""
    views = state.members.values()
    return [v.report if v.report is not None and v.report.attempt == attempt.key else None for v in views]
