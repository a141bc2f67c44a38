"""Who may wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.admission import Door
from models.errors import OverloadedError


def test_a_full_queue_is_shut() -> None:
    """The limit holds whatever the deadline, and the refusal says when to come back."""
    door = Door(2, lambda: 0.0)
    door.check(1, 5, 1e9, 1)
    with pytest.raises(OverloadedError, match="the limit is 2") as caught:
        door.check(2, 0, 1e9, 1)
    assert caught.value.retry_after_s >= 1.0


def test_nothing_is_refused_before_anything_is_known() -> None:
    """Without a measured image every deadline may be met."""
    Door(100, lambda: 0.0).check(99, 9, 0.001, 1)


def test_an_answer_that_would_come_too_late_is_refused_now() -> None:
    """Ten images of 100 ms on two workers take half a second; who has less is told how much is missing."""
    door = Door(100, lambda: 50.0)
    door.finished(1, 0.1)
    door.check(8, 1, 50.51, 2)
    with pytest.raises(OverloadedError, match=r"in about 0\.5 s") as caught:
        door.check(8, 1, 50.49, 2)
    assert caught.value.retry_after_s == 1.0


def test_an_empty_queue_is_always_open() -> None:
    """One slow image must not keep everybody out for ever."""
    door = Door(100, lambda: 0.0)
    door.finished(1, 60.0)
    door.check(0, 1, 1.0, 1)


@given(times=st.lists(st.floats(0.001, 10.0), min_size=1, max_size=50), waiting=st.integers(1, 99))
def test_the_estimate_lies_between_the_fastest_and_the_slowest(times: list[float], waiting: int) -> None:
    """Whoever has time for the slowest is let in, whoever has less than the fastest takes is not."""
    door = Door(100, lambda: 0.0)
    for seconds in times:
        door.finished(2, 2 * seconds)
    door.check(waiting, 0, (waiting + 1) * max(times) * 1.001, 1)
    with pytest.raises(OverloadedError):
        door.check(waiting, 0, (waiting + 1) * min(times) * 0.999, 1)
