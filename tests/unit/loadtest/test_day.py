"""The simulated day: its traffic, its fleet's laws, its policies."""

from __future__ import annotations

import json

import day
import day_policies
import numpy as np
import pytest
from day_fleet import Fleet, Machine, poured
from day_traffic import arrivals, curve
from hypothesis import given, settings
from hypothesis import strategies as st

MACHINE = Machine(rate=20.0, image_s=0.05, room=256.0, start_s=5.0)
steps = st.lists(st.tuples(st.floats(0.0, 2000.0), st.integers(0, 30)), min_size=1, max_size=60)


@given(steps, st.integers(0, 10))
@settings(deadline=None)
def test_no_image_is_lost_or_made(story: list[tuple[float, int]], start: int) -> None:
    """Whatever comes and however the fleet is ordered: arrived = answered + shed + inside, and nothing is negative."""
    fleet = Fleet.of(start, MACHINE, 0.5)
    arrived = answered = shed = 0.0
    for arriving, replicas in story:
        second = fleet.step(arriving)
        arrived, answered, shed = arrived + arriving, answered + second.answered, shed + second.shed
        assert arrived == pytest.approx(answered + shed + fleet.inside, abs=1e-6)
        assert min(second.answered, second.shed, second.late, second.inside) >= 0.0
        assert second.shed + second.late <= arriving + 1e-6
        assert second.answered <= MACHINE.rate * second.paid + 1e-6
        fleet.order(replicas)
        assert fleet.ordered == replicas


@given(st.lists(st.floats(0.0, 256.0), min_size=1, max_size=20), st.floats(0.0, 5000.0))
def test_the_emptiest_are_filled_first(levels: list[float], amount: float) -> None:
    """All that finds room is poured, none goes past the brim, and whoever gets some ends no higher than the others."""
    before = np.array(levels)
    taken = poured(before, amount, 276.0)
    after = before + taken
    assert taken.sum() == pytest.approx(min(amount, (276.0 - before).sum()))
    assert (taken >= 0).all()
    assert (after <= 276.0 + 1e-6).all()
    if (taken > 1e-9).any():
        assert after[taken > 1e-9].max() <= after.min() + 1e-6


def test_replicas_start_late_and_drain_before_they_go() -> None:
    """One that starts costs and answers nothing; one that leaves answers what it holds, and takes nothing more."""
    fleet = Fleet.of(1, MACHINE, 0.5)
    fleet.step(120.0)
    fleet.order(2)
    ready = [fleet.step(0.0).ready for _ in range(6)]
    assert ready == [1, 1, 1, 1, 2, 2]
    fleet.waiting[:] = 50.0
    fleet.order(0)
    paid, answered = zip(
        *((second.paid, second.answered) for second in (fleet.step(0.0) for _ in range(4))), strict=True
    )
    assert paid == (2, 2, 2, 0)
    assert answered == (40.0, 40.0, 20.0, 0.0)


def test_what_waits_too_long_is_late() -> None:
    """A replica of 20 a second with 40 waiting: whoever comes now waits two seconds."""
    fleet = Fleet.of(1, MACHINE, 0.5)
    fleet.waiting[:] = 40.0
    assert fleet.step(10.0).late == pytest.approx(10.0)
    fleet = Fleet.of(1, MACHINE, 0.5)
    assert fleet.step(20.0).late == 0.0
    # From an empty queue to one of 18 within the second, a line at 9: half of the images find more before them.
    assert fleet.step(38.0).late == pytest.approx(19.0)


def test_a_full_replica_refuses() -> None:
    """Beyond its room images are shed, whatever comes."""
    fleet = Fleet.of(1, MACHINE, 0.5)
    shed = [fleet.step(100.0).shed for _ in range(5)]
    assert shed[:3] == [0.0, 0.0, 0.0]
    assert shed[-1] == pytest.approx(80.0)


def test_a_day_has_its_shape() -> None:
    """Night, opening, lunch and evening, the largest being 1; the crowd comes at half past two; equal seeds agree."""
    hours = {hour: float(curve(np.array([3600.0 * hour]))[0]) for hour in (3.0, 6.0, 10.5, 12.4, 15.0, 17.8, 23.5)}
    assert hours[3.0] < 0.03
    assert hours[17.8] == pytest.approx(1.0, abs=0.01)
    assert hours[12.4] > hours[10.5]
    assert hours[12.4] > hours[15.0]
    assert hours[23.5] < 0.03
    images = arrivals(1000.0, seed=3)
    assert len(images) == 86_400
    assert (images == arrivals(1000.0, seed=3)).all()
    before, crowd = images[3600 * 14 : 3600 * 14 + 1500].mean(), images[52_260:53_000].mean()
    assert crowd / before == pytest.approx(1.6, abs=0.15)


def test_rays_own_function_keeps_its_delays() -> None:
    """It raises the order 30 s after the load, by what the slots show and no more, and lowers it after 600 s."""
    policy = day_policies.RayDefault({}, least=1, most=100)
    fleet = Fleet.of(4, MACHINE, 0.5)
    orders = []
    for now in range(60):
        second = fleet.step(4 * 60.0)
        orders.append(policy.decide(float(now), second, fleet))
    first = next(now for now, wanted in enumerate(orders) if wanted > 4)
    assert 30 <= first <= 45
    assert orders[first] <= 4 * 2.5
    fleet.waiting[:] = 0.0
    fleet.order(orders[first])
    orders = []
    for now in range(60, 760):
        second = fleet.step(1.0)
        orders.append(policy.decide(float(now), second, fleet))
    fell = next(now for now, wanted in enumerate(orders) if wanted < fleet.ordered)
    assert 600 <= fell <= 660


def test_the_mean_over_time_weighs_by_how_long() -> None:
    """A step function, whose last value holds until now."""
    assert day_policies.mean_over_time(((0.0, 1.0), (6.0, 3.0)), 8.0) == pytest.approx((6 * 1 + 2 * 3) / 8)
    assert day_policies.mean_over_time((), 8.0) == 0.0


def test_an_hour_of_the_day_is_better_under_our_policy() -> None:
    """The opening: fewer replica-hours and fewer missed objectives than Ray's default, and the sums add up."""
    images = arrivals(2000.0, seed=1, seconds=9 * 3600)[6 * 3600 :].tolist()
    found = {
        title: day.simulate(make(), images, machine, start=10)
        for title, (make, machine) in list(day.policies(Machine()).items())[:2]
    }
    ours, rays = found["Steelyard"], found["Ray Serve's default"]
    assert ours["replica_hours"] < rays["replica_hours"]
    assert ours["missed"] < 0.1 * rays["missed"]
    for each in found.values():
        assert each["arrived"] == pytest.approx(each["answered"] + each["shed"] + each["inside"])


def test_the_result_is_a_table_and_a_figure() -> None:
    """Both are made of what is written as JSON."""
    images = arrivals(500.0, seed=1, seconds=600).tolist()
    machine = {"date": "2026-01-02 03:04 UTC", "commit": "abc", "cpu": "A CPU", "cores": 2}
    days = {title: day.simulate(make(), images, seen) for title, (make, seen) in day.policies(Machine()).items()}
    result = json.loads(json.dumps({"machine": machine, "replica": {"rate": 20.0}, "days": days}))
    text = day.markdown(result)
    assert text.count("\n|") == 6
    assert "replica-hours of work" in text
    assert len(day.draw(result).axes) == 2


@pytest.mark.parametrize("arguments", [["--hours", "25"], ["--start", "0"]])
def test_senseless_options_are_refused(arguments: list[str]) -> None:
    """Before anything is simulated."""
    with pytest.raises(SystemExit) as caught:
        day.parse(arguments)
    assert caught.value.code == 2
