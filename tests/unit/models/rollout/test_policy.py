"""Which version to bring next, as a table, and the laws of rejections and pins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rollout.messages import Failure, Target
from models.rollout.policy import (
    MAX_REJECTIONS,
    Keep,
    Pin,
    Refuse,
    Rejection,
    Roll,
    decode_pin,
    decode_rejections,
    encode_pin,
    encode_rejections,
    find,
    next_action,
    reject,
    wanted,
)
from models.weights.registry import Desired

ONE, TWO = Target("1", "d1", "p1"), Target("2", "d2", "p2")
BLIND = Failure("golden", "it is blind", permanent=True)
DOWN = Failure("fetch", "the store is down", permanent=False)


def wants(target: Target, state: str = "ready") -> Desired:
    """Return a reading of the alias that names ``target``."""
    return Desired("m", target.version, target.digest, state, target.promotion)


BACK = Pin(Target("1", "d1", "r1"), over=("p2", "2"))


@pytest.mark.parametrize(
    ("desired", "serving", "rejections", "pin", "expected"),
    [
        (None, None, (), None, Keep("no version is promoted")),
        (None, ONE, (), None, Keep("no version is promoted")),
        (wants(ONE), None, (), None, Roll(ONE)),
        (wants(ONE), ONE, (), None, Keep()),
        (wants(Target("1", "d1", "again")), ONE, (), None, Keep()),
        (wants(TWO), ONE, (), None, Roll(TWO)),
        (wants(Target("9", "d1", "p9")), ONE, (), None, Roll(Target("9", "d1", "p9"))),
        (wants(TWO), ONE, (Rejection(TWO, BLIND, None),), None, Refuse("2", BLIND)),
        (wants(Target("2", "d2", "p3")), ONE, (Rejection(TWO, BLIND, None),), None, Roll(Target("2", "d2", "p3"))),
        (wants(TWO), ONE, (Rejection(TWO, DOWN, 10.5),), None, Refuse("2", DOWN)),
        (wants(TWO), ONE, (Rejection(TWO, DOWN, 10.0),), None, Roll(TWO)),
        (wants(TWO), TWO, (), BACK, Roll(BACK.target)),
        (wants(TWO), BACK.target, (), BACK, Keep()),
        (None, TWO, (), BACK, Roll(BACK.target)),
        (wants(Target("1", "d1", "r1")), TWO, (), BACK, Roll(BACK.target)),
        (wants(Target("3", "d3", "p3")), BACK.target, (), BACK, Roll(Target("3", "d3", "p3"))),
        (wants(Target("3", "d3", "p2")), BACK.target, (), BACK, Roll(Target("3", "d3", "p2"))),
    ],
)
def test_the_table_of_actions(
    desired: Desired | None,
    serving: Target | None,
    rejections: tuple[Rejection, ...],
    pin: Pin | None,
    expected: object,
) -> None:
    """Every case of desired against serving, rejections and pins has one answer (at the moment 10.0)."""
    assert next_action(desired, serving, rejections, pin, now=10.0) == expected


@pytest.mark.parametrize(
    ("desired", "reason"),
    [(wants(TWO, state=""), "version 2 is not ready"), (wants(Target("2", "", "p2")), "version 2 has no digest")],
)
def test_a_version_that_is_not_ready_is_refused_until_it_is(desired: Desired, reason: str) -> None:
    """A missing ready tag or digest refuses the version as it is now, without remembering it."""
    action = next_action(desired, ONE, (), None, now=0.0)
    assert isinstance(action, Refuse)
    assert action.failure.reason == reason


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=80))
def test_rejections_stay_few_and_the_latest_is_remembered(refused: list[tuple[int, bool]]) -> None:
    """However many versions fail, the memory is bounded and holds the last of them."""
    rejections: tuple[Rejection, ...] = ()
    for number, permanent in refused:
        target = Target(str(number), f"d{number}", "p")
        failure = Failure("load", "no", permanent=permanent)
        rejections = reject(rejections, target, failure, now=5.0, backoff_s=1.0, cap_s=60.0)
        latest = find(rejections, target)
        assert latest is not None
        assert (latest.retry_at is None) == permanent
    assert len(rejections) <= MAX_REJECTIONS
    assert len({r.target for r in rejections}) == len(rejections)


def test_a_transient_rejection_waits_twice_as_long_each_time_up_to_the_cap() -> None:
    """1, 2, 4, ... seconds, never more than the cap, also after very many tries."""
    rejections: tuple[Rejection, ...] = ()
    waits = []
    for _ in range(60):
        rejections = reject(rejections, TWO, DOWN, now=100.0, backoff_s=1.0, cap_s=10.0)
        assert rejections[0].retry_at is not None
        waits.append(rejections[0].retry_at - 100.0)
    assert waits[:5] == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert set(waits[4:]) == {10.0}


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_a_pin_survives_its_record(version: str, digest: str, promotion: str, over: str, over_version: str) -> None:
    """What is written is what is read."""
    for passing in (False, True):
        pin = Pin(Target(version, digest, promotion), (over, over_version), passing)
        assert decode_pin(encode_pin(pin)) == pin


def test_a_pin_of_an_earlier_steelyard_is_read() -> None:
    """It knew of no passing ones."""
    text = '{"over": ["p2", "2"], "target": {"digest": "d1", "promotion": "r1", "version": "1"}}'
    assert decode_pin(text) == BACK


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"over": 3, "target": {}}', '{"over": ["a"]}'])
def test_an_unreadable_pin_stands_for_nothing(text: str | None) -> None:
    """A damaged record leaves the alias in charge."""
    assert decode_pin(text) is None
    assert encode_pin(None) is None


def test_what_is_wanted_is_what_may_still_come_to_serve() -> None:
    """A refusal for good ends the wish, one that passes does not."""
    assert wanted(None, ()) is None
    assert wanted(wants(TWO), ()) == TWO
    assert wanted(wants(TWO), (Rejection(TWO, DOWN, 9.0),)) == TWO
    assert wanted(wants(TWO), (Rejection(TWO, BLIND, None),)) is None
    assert wanted(Desired("m", "2", "", "ready", "p2"), ()) is None


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.booleans()), max_size=60))
def test_what_was_refused_for_good_survives_its_record(refused: list[tuple[str, str, str, bool]]) -> None:
    """In its order, and bounded; what is tried again anyway is not written."""
    rejections = tuple(
        Rejection(Target(version, f"d{number}", promotion), Failure("load", reason, permanent=lasting), None, 1)
        if lasting
        else Rejection(Target(version, f"d{number}", promotion), Failure("load", reason, permanent=False), 9.0, 2)
        for number, (version, promotion, reason, lasting) in enumerate(refused)
    )
    lasting = tuple(each for each in rejections if each.retry_at is None)
    assert decode_rejections(encode_rejections(rejections)) == lasting[-MAX_REJECTIONS:]


@pytest.mark.parametrize("text", [None, "", "{", "3", "null", "[3]", '[{"target": {}}]', '[{"failure": 2}]'])
def test_unreadable_rejections_refuse_nothing(text: str | None) -> None:
    """A damaged record, or one of an earlier Steelyard, lets every version be tried."""
    assert decode_rejections(text) == ()
    assert encode_rejections(()) is None
