"""Rollback, asked for by somebody or begun by probation: what it takes back and where it leads.

The latest promotion is taken back, however far it has come. One that is not committed yet is given up, whatever phase
its attempt is in, with or without a trial, and what serves goes on serving; one that is committed gives way to what
served before it. So the answer to "undo what I promoted last" does not hang on whether the commit was a moment earlier.
What was refused for good is out of the way already: nothing of it is left to take back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from models.rollout import endings, policy
from models.rollout.choice import pending, serving
from models.rollout.messages import Failure, Target
from models.rollout.state import Audit, Effect, MoveAlias, SavePin

if TYPE_CHECKING:
    from models.rollout.endings import Step
    from models.rollout.state import State

TAKEN_BACK: Final = Failure("rollback", "somebody took it back before it was committed", permanent=True)
_UNDECIDED: Final = frozenset({"fetch", "judge", "prepare", "trial", "hold"})
"""Phases that a rollback ends at once. A claim is awaited first, an abort is on its way, and a commit may have won:
then it is undone by a generation of its own."""


def ways(state: State) -> tuple[Target, Target] | None:
    """Return what a rollback would take back and what would serve then; None where nothing has served before."""
    current, waiting = serving(state), pending(state)
    if current is None or state.committed is None:
        return None
    if waiting is not None:
        return waiting, current
    return None if state.committed.back is None else (current, state.committed.back)


def standing(state: State) -> policy.Pin | None:
    """Return the pin of the rollback under way, which one more would only repeat; None where there is none.

    One that has arrived is under way until its alias has followed, where there is nothing further back.
    """
    pin, committed = state.pin, state.committed
    if pin is None or committed is None or not policy.stands(pin, state.desired):
        return None
    if policy.find(state.rejections, pin.target) is not None:
        return None
    arrived = _same(pin.target, committed.target) and state.target is None
    return None if arrived and committed.back is not None else pin


def roll_back(state: State, promotion: str, now: float) -> Step:
    """Take the latest promotion back, under the promotion id ``promotion``.

    Nothing changes where nothing served before, or where a rollback is under way already.
    """
    pin = standing(state)
    if pin is not None:
        if not pin.passing:
            return state, ()
        # Probation leads back already; what was promoted meanwhile shall not follow after all.
        state = replace(state, pin=replace(pin, passing=False))
        return state, (SavePin(state.pin),)
    if pending(state) is None:
        return pin_back(state, promotion)
    return _take_back(state, promotion, now)


def pin_back(state: State, promotion: str) -> Step:
    """Return to what served before, under the promotion id ``promotion``; nothing where there is no such version."""
    committed = state.committed
    if committed is None or committed.back is None:
        return state, ()
    pin = _pin(state, committed.back, promotion)
    return replace(state, pin=pin, probation=None, not_before=0.0), (SavePin(pin),)


def _take_back(state: State, promotion: str, now: float) -> Step:
    """Give up what is not committed yet and have the alias follow what serves.

    In the phase ``commit`` only the ledger knows whether that is too late; the pin leads back to what serves now
    either way.
    """
    current = serving(state)
    if current is None:
        return state, ()
    pin = _pin(state, current, promotion)
    state = replace(state, pin=pin)
    effects: list[Effect] = [SavePin(pin)]
    deciding = state.target if state.phase == "commit" else None
    if deciding is None:
        effects.append(MoveAlias(pin))
    for target in dict.fromkeys((state.target, policy.wanted(state.desired, state.rejections))):
        if target is None or target == deciding or _same(target, current) or policy.refused(state.rejections, target):
            continue
        rejections = policy.reject(state.rejections, target, TAKEN_BACK, now=now, backoff_s=0.0, cap_s=0.0)
        state = replace(state, rejections=rejections)
        effects.append(Audit(target, "rejected", TAKEN_BACK))
    if state.phase in _UNDECIDED:
        state, aborting = endings.abort(replace(state, note=TAKEN_BACK.reason), now)
        effects += aborting
    return state, tuple(effects)


def _pin(state: State, to: Target, promotion: str) -> policy.Pin:
    over = state.desired or (state.committed.target if state.committed else to)
    before = state.pin if state.pin is not None and policy.stands(state.pin, state.desired) else None
    return policy.Pin(
        Target(to.version, to.digest, promotion),
        (over.promotion, over.version),
        replaces=before.target.promotion if before else "",
    )


def _same(one: Target, other: Target) -> bool:
    return (one.version, one.digest) == (other.version, other.digest)
