"""Strict mode in a replica: it answers only while the ledger has lately counted it."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rollout import isolation, member
from models.rollout.member import (
    CUT_OFF,
    IN_DOUBT,
    Ask,
    Confirm,
    Confirmed,
    Directed,
    Discard,
    FailAll,
    Hold,
    Joined,
    LedgerSilent,
    MemberState,
    Prepared,
    Rejoin,
    Resume,
    Ruled,
    Tick,
    Unconfirmed,
)
from models.rollout.messages import Attempt, Directive, Target

TWO = Attempt(5, 2, Target("2", "d2", "p2"))
START = MemberState("r", generation=4, digest="d1", incarnation=2, isolation_s=9.0)
COUNTED, STRUCK = True, False


def _feed(state: MemberState, *events: member.Event, at: float = 0.0) -> tuple[MemberState, list[member.Effect]]:
    effects: list[member.Effect] = []
    for event in events:
        state, more = member.step(state, event, at)
        effects += more
    return state, effects


def _told(kind: str, attempt: Attempt | None = None) -> Directed:
    return Directed(Directive(kind, 2, attempt))  # type: ignore[arg-type]


def _cut_off() -> MemberState:
    return _feed(START, Tick(), Unconfirmed(), at=9.0)[0]


def test_it_asks_three_times_within_the_limit_and_again_soon_after_a_failure() -> None:
    """One question at a time; two that are lost do not stop it."""
    state, effects = _feed(START, Tick(), Tick())
    assert effects == [Confirm()]
    state = _feed(state, Confirmed(0.0, COUNTED), at=0.1)[0]
    assert _feed(state, Tick(), at=3.0)[1] == []
    state, effects = _feed(state, Tick(), at=3.1)
    assert effects == [Confirm()]
    state = _feed(state, Unconfirmed(), at=4.6)[0]
    assert isolation.wait_s(state, 4.6) == pytest.approx(isolation.RETRY_S)
    assert _feed(state, Tick(), at=4.85)[1] == [Confirm()]


def test_it_refuses_at_the_limit_counted_from_the_question_not_from_the_answer() -> None:
    """What was true when it asked says nothing of the time that the answer took."""
    state = _feed(START, Tick(), Confirmed(1.0, COUNTED), at=2.0)[0]
    assert FailAll(CUT_OFF) not in _feed(state, Tick(), at=9.9)[1]
    state, effects = _feed(state, Tick(), at=10.0)
    assert effects == [FailAll(CUT_OFF), Confirm()]
    assert member.refusing(state) == CUT_OFF
    assert _feed(state, Tick(), at=60.0)[1] == []


def test_the_ledgers_word_lets_it_answer_again_and_the_actors_does_not() -> None:
    """On a host that is cut off, a former life of the actor may still talk to it."""
    state, effects = _feed(_cut_off(), _told("stay"), _told("prepare", TWO), at=9.1)
    assert FailAll(None) not in effects
    assert state.failing
    state, effects = _feed(state, Confirmed(9.2, COUNTED), at=9.3)
    assert effects == [FailAll(None)]
    assert member.refusing(state) is None


def test_a_word_that_is_too_old_when_it_comes_lifts_nothing() -> None:
    """The answer took longer than the limit."""
    assert _feed(_cut_off(), Confirmed(0.5, COUNTED), at=20.0) == (
        replace(_cut_off(), heard=0.5, look_at=23.0),
        [],
    )


def test_one_that_is_struck_off_joins_again_and_answers_nothing_meanwhile() -> None:
    """At once, not only at the limit: the others may commit without it by then."""
    state, effects = _feed(START, Tick(), Confirmed(2.0, STRUCK), at=2.0)
    assert effects == [Confirm(), Hold(), Rejoin()]
    assert _feed(state, Tick(), Confirmed(3.0, STRUCK), at=3.0)[1] == []
    state, effects = _feed(state, Tick(), at=7.0)
    assert effects == [FailAll(IN_DOUBT)]
    assert member.refusing(state) == IN_DOUBT
    state, effects = _feed(state, Joined(9, "d9", 7.5), at=8.0)
    assert effects == [Resume(), FailAll(None)]
    assert (state.heard, isolation.wait_s(state, 8.0)) == (7.5, 0.0)
    assert _feed(state, Confirmed(7.0, STRUCK), at=8.1)[1] == [], "asked before it was admitted"


def test_what_stands_for_an_old_hold_does_not_make_one_answer_that_was_counted_out_meanwhile() -> None:
    """The decision was swept, so its own ABORT stands: it is refused before the hold ends, then joins again."""
    held = _feed(START, _told("prepare", TWO), Prepared(TWO), _told("hold", TWO))[0]
    state = _feed(held, Tick(), Unconfirmed(), LedgerSilent(5), at=1.0)[0]
    state, effects = _feed(state, Tick(), at=30.0)
    assert effects == [FailAll(IN_DOUBT), Confirm(), Ask(5)]
    assert isolation.wait_s(replace(state, failing=False), 30.0) == inf, "a loop that waits for it would spin"
    state, effects = _feed(state, Ruled(5, "ABORT"), at=30.1)
    assert effects == [FailAll(CUT_OFF), Resume()]
    assert _feed(state, Confirmed(30.0, STRUCK), at=30.2)[1] == [Hold(), Discard("d2"), Rejoin()]


def test_without_strict_mode_nothing_is_asked_and_nothing_refused() -> None:
    """Availability comes first by default."""
    plain = replace(START, isolation_s=inf)
    assert _feed(plain, Tick(), at=3600.0) == (plain, [])
    assert isolation.wait_s(plain, 3600.0) == inf


_EVENTS = st.one_of(
    st.just(Tick()),
    st.just(Unconfirmed()),
    st.builds(lambda kind: _told(kind, TWO), st.sampled_from(["stay", "prepare", "hold", "go", "release", "rejoin"])),
    st.just(Prepared(TWO)),
    st.builds(Ruled, st.just(5), st.sampled_from(["COMMIT", "ABORT"])),
    st.builds(Confirmed, st.floats(0.0, 100.0), st.booleans()),
    st.builds(Joined, st.integers(4, 9), st.just("d9"), st.floats(0.0, 100.0)),
)


@given(st.lists(st.tuples(_EVENTS, st.floats(0.0, 5.0)), max_size=60))
def test_no_batch_starts_after_the_limit_whatever_happens(events: list[tuple[member.Event, float]]) -> None:
    """After any event, and in the middle of its effects: held, refused, or confirmed within the limit."""
    state, now, held, failing = START, 0.0, False, False
    for drawn, wait in events:
        now += wait
        # Words and admissions come from the past.
        event = replace(drawn, asked=min(drawn.asked, now)) if isinstance(drawn, (Confirmed, Joined)) else drawn
        state, effects = member.step(state, event, now)
        fresh = now < state.heard + state.isolation_s
        for effect in effects:
            held = True if isinstance(effect, Hold) else False if isinstance(effect, Resume) else held
            failing = effect.message is not None if isinstance(effect, FailAll) else failing
            if isinstance(effect, (Resume, FailAll)):
                assert fresh or held or failing
        assert fresh or held or failing
        assert failing == state.failing
