"""The rollout of one model as people and tools see it, computed from the actor's state alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from models.rollout import policy, trial
from models.rollout.choice import choose, next_step, serving, step_under_way
from models.rollout.evidence import Evidence, measured
from models.rollout.proving import evidence_of_probation, evidence_of_trial

if TYPE_CHECKING:
    from models.rollout.state import State, View

SILENT_S = 15.0
"""Seconds without a poll after which a status calls a replica silent; the protocol itself never acts on silence."""


class ReplicaStatus(TypedDict):
    """One replica in a status. version is None until it has reported."""

    id: str
    version: str | None
    state: str


class VerdictStatus(TypedDict):
    """What one gate said of the version tried most recently. waived: it passed only because its promotion said so."""

    gate: str
    passed: bool
    waived: bool
    reason: str
    measured: dict[str, float]


class TrialStatus(TypedDict):
    """The trial step under way. number of ``of`` steps; fraction of images or clients; left_s: until its end, at least.

    evidence: name -> number, what it has shown so far.
    """

    mode: str
    number: int
    of: int
    fraction: float
    left_s: float
    evidence: dict[str, float]


class ProbationStatus(TypedDict):
    """The probation of the version that serves. evidence: the version before as ``serving``, it as ``candidate``."""

    left_s: float
    evidence: dict[str, float]


class Status(TypedDict):
    """The rollout of one model, as ``GET /v1/models/{m}/rollout`` shows it. generation is 0 before the first commit."""

    model: str
    desired: str | None
    serving: str | None
    generation: int
    state: str
    step: str | None
    reason: str | None
    trial: TrialStatus | None
    probation: ProbationStatus | None
    verdicts: list[VerdictStatus]
    replicas: list[ReplicaStatus]


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
        trial=_trial(state, now),
        probation=_probation(state, now),
        verdicts=[
            VerdictStatus(gate=v.gate, passed=v.passed, waived=v.waived, reason=v.reason, measured=dict(v.measured))
            for v in state.verdicts
        ],
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
    under_way = _under_way(state)
    if under_way is not None:
        return under_way, _STEPS.get(state.phase, under_way), state.note
    note = action.note if isinstance(action, policy.Keep) else state.note
    return "serving" if state.probation is None else "probation", None, note


def _under_way(state: State) -> str | None:
    step = step_under_way(state)
    if state.phase in ("hold", "commit"):
        return "holding" if next_step(state) is None else "canary"
    if state.phase == "trial" or (state.phase == "prepare" and state.stage):
        return None if step is None else step.mode
    return {"fetch": "preparing", "judge": "judging", "claim": "preparing", "prepare": "preparing",
            "abort": "preparing"}.get(state.phase)  # fmt: skip


_STEPS = {
    "fetch": "fetch", "judge": "judge", "claim": "load", "bootstrap": "load", "prepare": "load", "abort": "load",
    "hold": "hold", "commit": "commit",
}  # fmt: skip


def _trial(state: State, now: float) -> TrialStatus | None:
    step = step_under_way(state)
    if step is None:
        return None
    left_s = step.length_s if state.begun is None else max(0.0, step.length_s - (now - state.begun))
    return TrialStatus(
        mode=step.mode,
        number=step.number,
        of=len(trial.steps(state.order)),
        fraction=step.fraction,
        left_s=round(left_s, 1),
        evidence=measured(evidence_of_trial(state)),
    )


def _probation(state: State, now: float) -> ProbationStatus | None:
    if state.probation is None:
        return None
    before, since = evidence_of_probation(state)
    figures = measured(Evidence(before.serving, since.serving))
    return ProbationStatus(
        left_s=round(max(0.0, state.timing.probation.window_s - (now - state.probation)), 1),
        evidence={name: value for name, value in figures.items() if name.startswith(("serving", "candidate"))},
    )


def _condition_of(view: View, now: float) -> str:
    if view.died_at is not None:
        return "dead"
    if not view.admitted:
        return "joining"
    if view.report is None or view.seen is None or now - view.seen > SILENT_S:
        return "silent"
    if view.report.phase == "prepared" and view.report.trial:
        return "trying"
    return "serving" if view.report.phase == "idle" else view.report.phase


def _version(state: State, view: View) -> str | None:
    if view.report is None:
        return None
    known = [state.attempt.target] if state.attempt else []
    if state.committed is not None:
        known.append(state.committed.target)
        known += [state.committed.previous] if state.committed.previous else []
    return next((t.version for t in reversed(known) if t.digest == view.report.digest), None)
