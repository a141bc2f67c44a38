"""How much of the machine nobody needs."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.spare_time import FRESH_S, LOOK_S, SpareTime, Ticks, read_ticks


class FakeMachine:
    """A clock, its sleep, and the ticks of processors of which ``spare`` is spare."""

    def __init__(self, spare: float = 0.5, cores: int = 2) -> None:
        """Begin at 0."""
        self.now = self.idle = 0.0
        self.spare, self.cores = spare, cores

    def clock(self) -> float:
        """Return the seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
        self.idle += seconds * self.spare * self.cores

    def read(self) -> Ticks:
        """Return the ticks."""
        return Ticks(self.idle, self.now * self.cores)


def looking_at(machine: FakeMachine) -> SpareTime:
    """Return what looks at it."""
    return SpareTime(machine.read, machine.clock, machine.sleep)


@given(spare=st.floats(0.0, 1.0), pauses=st.lists(st.floats(0.0, 10.0), max_size=5), glances=st.booleans())
def test_it_tells_the_share_whenever_it_is_asked(spare: float, pauses: list[float], *, glances: bool) -> None:
    """Nobody waits for longer than a look, whatever came before."""
    machine = FakeMachine(spare)
    time = looking_at(machine)
    for pause in pauses:
        machine.sleep(LOOK_S + pause)
        if glances:
            time.glance()
        asked = machine.now
        assert time.share() == pytest.approx(spare, abs=1e-6)
        assert machine.now - asked <= LOOK_S + 1e-9


def test_what_was_told_of_late_is_told_again() -> None:
    """The steps of one load look once, or not at all where somebody glances."""
    machine = FakeMachine(1.0)
    time = looking_at(machine)
    time.glance()
    assert time.share() == pytest.approx(1.0)
    machine.spare = 0.0
    machine.sleep(FRESH_S / 2)
    asked = machine.now
    assert time.share() == pytest.approx(1.0)
    assert machine.now == asked
    assert time.glance() == pytest.approx(0.0)
    assert time.share() == pytest.approx(0.0)
    assert machine.now == asked


def test_what_is_long_past_does_not_count() -> None:
    """An idle hour does not speak for the rush that has just begun."""
    machine = FakeMachine(1.0)
    time = looking_at(machine)
    time.share()
    machine.sleep(FRESH_S + 1.0)
    machine.spare = 0.0
    assert time.share() == pytest.approx(0.0)


def test_a_glance_waits_for_nothing() -> None:
    """An event loop may take one: the first tells nothing, each further one what was since."""
    machine = FakeMachine(0.25)
    time = looking_at(machine)
    assert time.glance() == 0.0
    for seconds, spare in ((1.0, 0.25), (5.0, 0.75)):
        machine.spare = spare
        machine.sleep(seconds)
        asked = machine.now
        assert time.glance() == pytest.approx(spare)
        assert machine.now == asked


def test_a_clock_that_stands_still_means_no_time_to_spare() -> None:
    """Nothing is divided by nothing."""
    assert SpareTime(lambda: Ticks(5.0, 5.0), lambda: 0.0, lambda _: None).share() == 0.0


def test_this_machine_is_read() -> None:
    """Spare time is part of all time, and both only grow."""
    before = read_ticks()
    sum(range(10**6))
    after = read_ticks()
    assert 0.0 <= before.spare <= before.total
    assert after.total >= before.total
    assert after.spare >= before.spare - 0.05 * len(os.sched_getaffinity(0))
