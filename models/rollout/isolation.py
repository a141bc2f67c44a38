"""Strict mode: a replica answers only while the ledger has counted it as a member within the last ``isolation_s``.

Only the ledger's word counts. The actor's would not do: on the host that is cut off, its former life still answers.
Whoever is counted out is struck off the ledger first, then waited for (``membership.py``), so that a replica that was
not struck off when it asked answers for ``isolation_s`` from that moment with what is committed. What it asks costs one
read every third of that time.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final

from models.rollout.member_steps import Confirm, FailAll

if TYPE_CHECKING:
    from models.rollout.member import MemberState, Step
    from models.rollout.member_steps import Confirmed, Effect

CUT_OFF: Final = "this replica is cut off from the cluster; retry, another replica may answer"
LOOKS: Final = 3
"""Reads of the ledger within ``isolation_s``, where none fails."""
RETRY_S: Final = 0.25
"""Pause after a read that failed (seconds)."""


def look(state: MemberState, now: float) -> Step:
    """Ask the ledger where it is time to."""
    if state.isolation_s == inf or state.outside or state.looking or now < state.look_at:
        return state, ()
    return replace(state, looking=True), (Confirm(),)


def heard(state: MemberState, said: Confirmed, now: float) -> tuple[MemberState, bool]:
    """Return the state that has taken the ledger's word, and whether the replica is struck off."""
    state = replace(state, looking=False, look_at=now + state.isolation_s / LOOKS)
    if said.member:
        return replace(state, heard=max(state.heard, said.asked)), False
    # A word from before its last admission is an old story.
    return state, not state.outside and said.asked > state.heard


def unheard(state: MemberState, now: float) -> MemberState:
    """Return the state after a read that failed."""
    return replace(state, looking=False, look_at=now + RETRY_S)


def guard(state: MemberState, effects: tuple[Effect, ...], now: float) -> Step:
    """Refuse requests from the moment at which the ledger's last word is too old, until it speaks again.

    In a hold and outside the fleet no batch starts anyway; the limit of the doubt refuses then.
    """
    if state.isolation_s == inf or state.outside or state.phase == "holding":
        return state, effects
    if now < state.heard + state.isolation_s:
        return (replace(state, failing=False), (*effects, FailAll(None))) if state.failing else (state, effects)
    if state.failing:
        return state, effects
    # First, and for good: no batch may start between the end of a hold and the refusal.
    kept = tuple(effect for effect in effects if effect != FailAll(None))
    return replace(state, failing=True), (FailAll(CUT_OFF), *kept)


def wait_s(state: MemberState, now: float) -> float:
    """Return the seconds until a tick is due for it, below 0 where it is overdue; infinity outside strict mode."""
    if state.isolation_s == inf or state.outside:
        return inf
    look_at = inf if state.looking else state.look_at
    guarded = not state.failing and state.phase != "holding"
    return min(look_at, state.heard + state.isolation_s if guarded else inf) - now
