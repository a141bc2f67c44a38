"""What the rollout actor answers replicas, computed from its state alone: to polls and to those that start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.rollout import policy
from models.rollout.choice import choose, step_under_way
from models.rollout.messages import Directive, Failure, Join, Refused

if TYPE_CHECKING:
    from models.rollout.messages import Attempt, Report
    from models.rollout.state import State


def directive_for(state: State, replica: str, now: float) -> Directive | None:
    """Return what ``replica`` should do now, or None where it should only keep polling."""
    if state.phase in ("boot", "deposed"):
        return None
    view = state.members.get(replica)
    if view is None or (state.timing.strict and view.died_at is not None):
        return Directive("rejoin", state.incarnation)
    if view.report is None or not view.admitted:
        return None
    if view.report.phase == "holding":
        return _resolve(state, view.report)
    return _catch_up(state, view.report) or _work(state, view.report, now)


def _resolve(state: State, report: Report) -> Directive | None:
    generation = report.attempt[0] if report.attempt else 0
    if state.committed is not None and state.committed.generation == generation:
        return Directive("go", state.incarnation, state.committed)
    if generation in state.aborted:
        return Directive("release", state.incarnation, generation=generation)
    if state.phase == "trial" and state.attempt is not None and report.attempt == state.attempt.key:
        return _try(state, state.attempt, report)
    return None


def _catch_up(state: State, report: Report) -> Directive | None:
    committed = state.committed
    if committed is None or report.generation >= committed.generation:
        return None
    if report.attempt != committed.key:
        return Directive("prepare", state.incarnation, committed)
    return Directive("go", state.incarnation, committed) if report.phase == "prepared" else None


def _work(state: State, report: Report, now: float) -> Directive | None:
    attempt = state.attempt
    if attempt is not None and state.phase in ("prepare", "trial", "hold"):
        return _towards(state, attempt, report)
    if attempt is not None and state.phase == "commit":
        return None
    keep = _wanted(state, now)
    if report.attempt is not None or report.candidate not in (None, keep):
        return Directive("stay", state.incarnation, keep=keep)
    return None


def _towards(state: State, attempt: Attempt, report: Report) -> Directive | None:
    if report.attempt != attempt.key:
        return Directive("prepare", state.incarnation, attempt) if state.phase != "hold" else None
    if report.phase != "prepared":
        return None
    if state.phase == "hold":
        return Directive("hold", state.incarnation, attempt, stage=state.stage)
    return _try(state, attempt, report)


def _try(state: State, attempt: Attempt, report: Report) -> Directive | None:
    """Tell a replica to run the trial step under way where it does not yet; one that has just prepared follows, too."""
    step = step_under_way(state)
    if step is None or report.trial >= step.number:
        return None
    return Directive("trial", state.incarnation, attempt, step=step)


def _wanted(state: State, now: float) -> str | None:
    action = choose(state, now)
    return action.target.digest if isinstance(action, policy.Roll) else None


def join_answer(state: State, now: float) -> Join | Refused | None:  # noqa: PLR0911 - one return a case
    """Return what a starting replica must load, why there is nothing to load, or None where it should wait."""
    if state.phase in ("boot", "deposed"):
        return None
    if state.committed is not None:
        return Join(state.committed, state.incarnation, decided=True)
    if state.phase == "bootstrap" and state.attempt is not None:
        return Join(state.attempt, state.incarnation, decided=False)
    if state.phase != "idle":
        return None
    match choose(state, now):
        case policy.Refuse(_, failure):
            # One that is tried again soon is worth waiting for; a start that fails counts against the deployment.
            return Refused(failure) if failure.permanent else None
        case policy.Keep(note) if state.heard:
            return Refused(Failure("fetch", f"{note}: promote one with `steelyard promote`", permanent=False))
        case _:
            return None
