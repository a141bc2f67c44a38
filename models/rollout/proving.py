"""How a version proves itself on live images: trial steps before its commit, probation after it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.evidence import Evidence, merge
from models.rollout import endings, policy, probation, trial
from models.rollout.choice import accepted_order, pending, reports, serving, step_under_way
from models.rollout.evidence import measured
from models.rollout.messages import Failure
from models.rollout.rollback import pin_back
from models.rollout.state import Audit, Note, SavePin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from models.rollout.endings import Step
    from models.rollout.messages import Attempt, Target
    from models.rollout.state import State
    from models.rollout.trial import TrialStep


def evidence_of_trial(state: State) -> Evidence:
    """Return what the trial step under way has shown so far on all members that run it."""
    attempt = state.attempt
    if attempt is None or not state.stage:
        return Evidence()
    found = (r.evidence for r in reports(state, attempt) if r is not None and r.trial == state.stage)
    return _merged(found)


def evidence_of_probation(state: State) -> tuple[Evidence, Evidence]:
    """Return what the version before had shown in its last hour, and what the committed one has shown since."""
    generation = state.committed.generation if state.committed else 0
    views = (v.report for v in state.members.values())
    told = [r for r in views if r is not None and r.generation == generation and r.watch is not None]
    return _merged(r.watch_before for r in told), _merged(r.watch for r in told)


def begin(state: State, step: TrialStep, now: float) -> State:
    """Return the state in which the members are told to run ``step``."""
    return replace(state, phase="trial", since=now, stage=step.number, begun=None)


def advance(state: State, now: float) -> Step:
    """Judge the trial step under way: wait, go on with what comes next, or give the target up."""
    attempt, step = state.attempt, step_under_way(state)
    if attempt is None or step is None:
        return state, ()
    found = reports(state, attempt)
    running = sum(r is not None and r.trial == step.number for r in found)
    if state.begun is None and found and running == len(found):
        return replace(state, begun=now), ()
    if state.begun is None and found and now - state.since > state.timing.prepare_timeout_s:
        why = f"only {running} of {len(found)} replicas began it in time; it is tried again later"
        return endings.give_up(state, Failure(step.mode, why, permanent=False), now)
    return _judge(state, attempt, step, now)


def _judge(state: State, attempt: Attempt, step: TrialStep, now: float) -> Step:
    if now - state.judged < state.timing.judge_every_s:
        return state, ()
    state = replace(state, judged=now)
    # Those that began early are judged at once: a candidate that fails must not wait for a replica that stands still.
    evidence = evidence_of_trial(state)
    elapsed_s = 0.0 if state.begun is None else now - state.begun
    match trial.judge(step, evidence, elapsed_s, state.timing.trial, state.order):
        case trial.Wait():
            return state, ()
        case trial.Abort(reason, permanent):
            return endings.give_up(state, Failure(step.mode, reason, permanent), now)
        case trial.Advance(waived):
            told = f"step {step.number}, {step.fraction:.1%} for {elapsed_s:.0f} s" + (f"; {waived}" if waived else "")
            note = Note(attempt.target, step.mode, told, measured(evidence))
            return replace(state, phase="prepare", since=now, advanced=step.number), (note,)


def on_probation(state: State, attempt: Attempt) -> bool:
    """Return whether ``attempt``, once committed, is watched: there must be something to return to."""
    return attempt.back is not None and state.timing.probation.window_s > 0.0


def watch(state: State, now: float) -> Step:
    """Judge the committed version while it is on probation; a breach begins the rollback."""
    committed, limits = state.committed, state.timing.probation
    if state.probation is None or committed is None or state.phase in ("boot", "hold", "commit") or _leaving(state):
        return state, ()
    elapsed_s = now - state.probation
    reason = None
    if state.lost >= state.timing.max_deaths:
        reason = f"{state.lost} replicas died while they answered with it"
    elif probation.passed(elapsed_s, limits):
        return replace(state, probation=None), (_outlived(state, committed.target, elapsed_s),)
    elif now - state.watched >= state.timing.judge_every_s:
        state = replace(state, watched=now)
        reason = probation.judge(*evidence_of_probation(state), elapsed_s, limits, accepted_order(state))
    if reason is None:
        return state, ()
    failure = Failure("probation", reason, permanent=True)
    # A rollback that led to this version has taken back what was promoted meanwhile.
    newer = pending(state) if state.pin is None else None
    refused = policy.reject(state.rejections, committed.target, failure, now=now, backoff_s=0.0, cap_s=0.0)
    state, effects = pin_back(replace(state, rejections=refused), f"probation-{committed.generation}")
    if state.pin is not None and newer is not None and newer.digest != committed.target.digest:
        # Somebody has promoted something newer meanwhile: it comes after the way back.
        state = replace(state, pin=replace(state.pin, passing=True))
        effects = (SavePin(state.pin),)
    return replace(state, note=reason), (Audit(committed.target, "rolled back", failure), *effects)


def _leaving(state: State) -> bool:
    """Return whether a rollback from the committed version is under way; one that led to it leaves it on probation."""
    pin, committed = state.pin, state.committed
    if pin is None or committed is None:
        return False
    return (pin.target.version, pin.target.digest) != (committed.target.version, committed.target.digest)


def _outlived(state: State, target: Target, elapsed_s: float) -> Note:
    _, since = evidence_of_probation(state)
    if since.serving.images:
        return Note(target, "proven", f"nothing spoke against it in {elapsed_s:.0f} s", measured(since))
    told = f"nothing was seen of it in {elapsed_s:.0f} s: no replica tells of an image that it answered"
    return Note(target, "unproven", told, measured(since))


def retired(state: State) -> Step:
    """Note when no member answers any more with what served before the last commit."""
    target, now_serving, committed = state.retiring, serving(state), state.committed
    if target is None or committed is None:
        return state, ()
    views = [v for v in state.members.values() if v.admitted and v.died_at is None]
    if any(v.report is None or v.report.generation < committed.generation for v in views):
        return state, ()
    told = "" if now_serving is None else f"version {now_serving.version} answers on {len(views)} replicas"
    return replace(state, retiring=None), (Note(target, "retired", told),)


def _merged(parts: Iterable[Evidence | None]) -> Evidence:
    total = Evidence()
    for part in parts:
        total = total if part is None else merge(total, part)
    return total
