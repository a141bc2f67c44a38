"""What a replica tells of its work, and what the fleet's replicas tell together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DeadlineExceededError, InvalidImageError, OverloadedError
from models.scaling.work import RATE_S, Work, WorkMeter, total


def test_images_that_arrived_are_those_that_ended_and_those_inside() -> None:
    """Two answered, one refused, one expired, three still inside: seven in two seconds."""
    meter = WorkMeter()
    meter.read(10.0, inside=0, capacity=0.0, image_s=0.0)
    meter.answered()
    meter.answered()
    meter.not_answered(OverloadedError.code)
    meter.not_answered(DeadlineExceededError.code)
    found = meter.read(12.0, inside=3, capacity=20.0, image_s=0.05)
    assert found == Work(inside=3, arriving=3.5, refused=0.5, capacity=20.0, image_s=0.05)


def test_the_first_reading_knows_no_rate() -> None:
    """A replica that has just started says only what is inside."""
    assert WorkMeter().read(5.0, inside=4, capacity=0.0, image_s=0.0) == Work(4, 0.0, 0.0, 0.0, 0.0)


def test_what_is_no_image_is_no_work() -> None:
    """A flood of broken bodies is refused by any number of replicas alike."""
    meter = WorkMeter()
    meter.read(0.0, inside=0, capacity=0.0, image_s=0.0)
    for _ in range(100):
        meter.not_answered(InvalidImageError.code)
    assert meter.read(1.0, inside=0, capacity=0.0, image_s=0.0).arriving == 0.0


def test_rates_forget_what_is_older_than_their_window() -> None:
    """A burst shows for the window and no longer."""
    meter = WorkMeter()
    meter.read(0.0, inside=0, capacity=0.0, image_s=0.0)
    for _ in range(40):
        meter.answered()
    rates = [meter.read(float(second), inside=0, capacity=0.0, image_s=0.0).arriving for second in range(1, 8)]
    assert rates[:4] == pytest.approx([40.0, 20.0, 40 / 3, 10.0])
    assert rates[4:] == [0.0, 0.0, 0.0]
    assert RATE_S == 4.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=30))
def test_readings_add_up(seconds: list[tuple[int, int]]) -> None:
    """However images come and end, readings a second apart, before the window is full, tell all of them."""
    meter, inside, came = WorkMeter(), 0, 0
    meter.read(0.0, inside=0, capacity=0.0, image_s=0.0)
    for second, (arriving, ending) in enumerate(seconds[:4], start=1):
        inside, came = inside + arriving, came + arriving
        ended = min(ending, inside)
        inside -= ended
        for _ in range(ended):
            meter.answered()
        found = meter.read(float(second), inside=inside, capacity=0.0, image_s=0.0)
        assert found.arriving * second == pytest.approx(came)


def test_the_fleet_is_the_sum_and_its_capacity_the_middle() -> None:
    """A replica that has measured nothing, or stands on a slow machine, does not move it."""
    works = [Work(1, 10.0, 0.0, 20.0, 0.05), Work(2, 5.0, 1.0, 0.0, 0.05), Work(3, 5.0, 0.0, 21.0, 0.05)]
    works.append(Work(0, 0.0, 0.0, 4.0, 0.3))
    found = total(works)
    assert (found.inside, found.arriving, found.capacity, found.image_s) == (6, 20.0, 20.0, 0.05)
    assert total([Work(1, 1.0, 0.0, 0.0, 0.0)]).capacity == 0.0
