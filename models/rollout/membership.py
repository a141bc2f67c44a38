"""The coordinator's member set: who starts, is admitted, leaves or dies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.rollout import endings
from models.rollout.state import Admit, AdmitAsked, Decide, Depose, Effect, ForgetMember, RecordMember, State, View

if TYPE_CHECKING:
    from models.rollout.endings import Step


def told(state: State, replica: str, generation: int, now: float) -> State:
    """Note that ``replica`` was told to load the first attempt."""
    current = state.phase == "bootstrap" and state.attempt is not None and state.attempt.generation == generation
    return replace(state, trying={**state.trying, replica: state.trying.get(replica, now)}) if current else state


def returned(state: State, replica: str) -> State:
    """Return the state in which ``replica`` is no longer on its way with the first attempt."""
    if replica not in state.trying:
        return state
    return replace(state, trying={name: when for name, when in state.trying.items() if name != replica})


def died(state: State, replica: str, now: float) -> Step:
    """Note the proof that a replica's process is dead; in strict mode strike it off the ledger at once."""
    if replica in state.trying:
        return replace(returned(state, replica), deaths=state.deaths + 1), ()
    view = state.members.get(replica)
    if view is None or view.died_at is not None:
        return state, ()
    strike: tuple[Effect, ...] = (ForgetMember(replica),) if state.timing.strict else ()
    return with_view(state, replica, replace(view, died_at=now)), strike


def forgotten(state: State, replica: str, now: float) -> State:
    """Note that a dead member is struck off the ledger: it cannot learn any more that it is counted."""
    view = state.members.get(replica)
    if view is None or view.died_at is None or view.struck_at is not None:
        return state
    return with_view(state, replica, replace(view, struck_at=now))


def bury(state: State, now: float) -> tuple[State, View, tuple[Effect, ...]] | None:
    """Drop one member whose death was waited out; return it, too, None where there is no such member."""
    strict, wait = state.timing.strict, state.timing.burial_s
    for replica, view in state.members.items():
        since = view.struck_at if strict else view.died_at
        if since is not None and now >= since + wait:
            buried, effects = without(state, replica)
            # Struck off long ago; a second time, it could be after it was admitted again.
            return buried, view, () if strict else effects
    return None


def admit(state: State, asked: AdmitAsked, now: float) -> Step:  # noqa: PLR0911 - one return a case
    """Admit a replica that has loaded what is committed, or hear why it could not load the first attempt."""
    replica = asked.replica
    tried = state.attempt is not None and asked.generation == state.attempt.generation
    if asked.failure is not None:
        stale: tuple[Effect, ...] = (Admit(replica, "stale"),)
        if state.phase == "bootstrap" and tried:
            state, effects = endings.give_up(state, asked.failure, now)
            return state, (*effects, *stale)
        return state, stale
    if state.committed is None:
        if state.phase == "bootstrap" and tried:
            return _enter(state, replica)
        return state, (Admit(replica, "retry" if state.phase in ("boot", "commit", "abort") else "stale"),)
    if asked.generation != state.committed.generation:
        return state, (Admit(replica, "stale"),)
    if state.phase in ("boot", "hold", "commit", "abort"):
        return state, (Admit(replica, "retry"),)
    view = state.members.get(replica)
    if view is not None and state.timing.strict:
        # Dead is dead until it is buried; else it may ask because the ledger has lost it, so it is recorded again.
        return _enter(state, replica) if view.died_at is None else (state, (Admit(replica, "retry"),))
    if view is not None and view.admitted and view.died_at is None:
        return state, (Admit(replica, "admitted"),)
    return _enter(state, replica)


def _enter(state: State, replica: str) -> Step:
    if replica in state.joining:
        return state, ()
    # In the set before it is in the ledger: from this moment no HOLD can begin without this replica.
    state = with_view(state, replica, View())
    return replace(state, joining=state.joining | {replica}), (RecordMember(replica),)


def recorded(state: State, replica: str, *, in_charge: bool) -> Step:
    """Admit the replica that stands in the ledger now; before the first commit, its success is the commit."""
    if not in_charge:
        return replace(state, phase="deposed", attempt=None, target=None), (Depose(),)
    view = state.members.get(replica)
    if view is None:
        return state, ()
    state = with_view(state, replica, replace(view, admitted=True))
    if replica not in state.joining:
        return state, ()
    if state.committed is not None:
        return replace(state, joining=state.joining - {replica}), (Admit(replica, "admitted"),)
    if state.phase == "bootstrap" and state.attempt is not None:
        return replace(state, phase="commit"), (Decide(state.attempt.generation, "COMMIT"),)
    return state, ()


def with_view(state: State, replica: str, view: View) -> State:
    """Return the state in which the member looks like ``view``."""
    return replace(state, members={**state.members, replica: view})


def without(state: State, replica: str) -> Step:
    """Drop a member."""
    if replica not in state.members:
        return state, ()
    rest = {name: view for name, view in state.members.items() if name != replica}
    return replace(state, members=rest, joining=state.joining - {replica}), (ForgetMember(replica),)
