"""What the rollout actor answers, computed from its state alone: to polls, to starting replicas, to people."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from models.rollout import policy
from models.rollout.coordinator import choose, serving
from models.rollout.messages import Directive, Failure, Join, Refused

if TYPE_CHECKING:
    from models.rollout.messages import Report
    from models.rollout.state import State, View

SILENT_S = 15.0
"""Seconds without a poll after which a status calls a replica silent; the protocol itself never acts on silence."""


class ReplicaStatus(TypedDict):
    """One replica in a status. version is None until it has reported."""

    id: str
    version: str | None
    state: str


class Status(TypedDict):
    """The rollout of one model, as ``GET /v1/models/{m}/rollout`` shows it. generation is 0 before the first commit."""

    model: str
    desired: str | None
    serving: str | None
    generation: int
    state: str
    step: str | None
    reason: str | None
    replicas: list[ReplicaStatus]


def directive_for(state: State, replica: str, now: float) -> Directive | None:
    """Return what ``replica`` should do now, or None where it should only keep polling."""
    if state.phase in ("boot", "deposed"):
        return None
    view = state.members.get(replica)
    if view is None:
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
    if attempt is not None and state.phase in ("prepare", "hold"):
        if report.attempt != attempt.key:
            return Directive("prepare", state.incarnation, attempt) if state.phase == "prepare" else None
        if state.phase == "hold" and report.phase == "prepared":
            return Directive("hold", state.incarnation, attempt)
        return None
    if attempt is not None and state.phase == "commit":
        return None
    keep = _wanted(state, now)
    if report.attempt is not None or report.candidate not in (None, keep):
        return Directive("stay", state.incarnation, keep=keep)
    return None


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


def status(state: State, now: float) -> Status:
    """Return the status of the model for people and tools."""
    action = choose(state, now)
    current = serving(state)
    wanted = state.pin.target.version if state.pin else state.desired.version if state.desired else None
    name, step, reason = _condition(state, action)
    return Status(
        model=state.model,
        desired=wanted,
        serving=current.version if current else None,
        generation=state.committed.generation if state.committed else 0,
        state=name,
        step=step,
        reason=reason or None,
        replicas=[
            ReplicaStatus(id=replica.rpartition("#")[2], version=_version(state, view), state=_condition_of(view, now))
            for replica, view in sorted(state.members.items())
        ],
    )


def _condition(state: State, action: policy.Action) -> tuple[str, str | None, str]:
    if state.phase in ("idle", "abort") and isinstance(action, policy.Refuse):
        # Before the first commit, "rejected" tells whoever waits for the service that waiting is vain.
        due = state.committed is None and not action.failure.permanent
        return "starting" if due else "rejected", action.failure.step, action.failure.reason
    if state.committed is None:
        return "starting", _STEPS.get(state.phase), state.note
    if state.phase in ("hold", "commit"):
        return "holding", _STEPS[state.phase], state.note
    if state.phase in ("fetch", "claim", "prepare", "abort"):
        return "preparing", _STEPS.get(state.phase), state.note
    return "serving", None, action.note if isinstance(action, policy.Keep) else state.note


_STEPS = {
    "fetch": "fetch", "claim": "load", "bootstrap": "load", "prepare": "load", "abort": "load", "hold": "hold",
    "commit": "commit",
}  # fmt: skip


def _condition_of(view: View, now: float) -> str:
    if view.died_at is not None:
        return "dead"
    if not view.admitted:
        return "joining"
    if view.report is None or view.seen is None or now - view.seen > SILENT_S:
        return "silent"
    return "serving" if view.report.phase == "idle" else view.report.phase


def _version(state: State, view: View) -> str | None:
    if view.report is None:
        return None
    known = [state.attempt.target] if state.attempt else []
    if state.committed is not None:
        known.append(state.committed.target)
        known += [state.committed.previous] if state.committed.previous else []
    return next((t.version for t in reversed(known) if t.digest == view.report.digest), None)
