"""The scaling policy: a table of cases, and the laws that hold for every load."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scaling.policy import Demand, Limits, Memory, Sight, decide, need

LIMITS = Limits(least=1, most=50, objective_s=0.5, most_waiting=256, quiet_s=60.0)
CAPACITY = 20.0


def seen(
    arriving: float,
    inside: float = 0.0,
    *,
    ready: int = 1,
    ordered: int | None = None,
    now: float = 1000.0,
    **more: object,
) -> Sight:
    """Return what is seen of one model whose replicas answer 20 images a second, 50 ms each, and start in 10 s."""
    demand = Demand(inside, arriving, CAPACITY, 1 / CAPACITY)
    sight = Sight(now, ready, ready if ordered is None else ordered, ready, 10.0, {"checkout": demand})
    return replace(sight, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arriving", "inside", "ready", "wanted"),
    [
        (0.0, 0.0, 1, 1),  # nothing to do
        (4.0, 0.2, 1, 1),  # a fifth of one replica
        (13.5, 0.7, 1, 1),  # 14.9 with growth, and 4.7 to spare for waits: 19.5
        (14.0, 0.7, 1, 2),  # 15.4 and 4.7: 20.1
        (19.0, 2.0, 1, 2),  # nearly full
        (60.0, 0.0, 1, 5),  # three times as much: what piles up within 10 s is drained within 10 s
        (60.0, 3.0, 5, 4),  # the same, once they are there
        (60.0, 200.0, 5, 4),  # a backlog that is gone before a replica has started
        (60.0, 1000.0, 5, 6),  # one that is not
        (900.0, 45.0, 50, 50),  # 45 replicas' worth needs 49.8
        (5000.0, 0.0, 1, 50),  # no more than allowed
    ],
)
def test_the_need_follows_from_arrivals_and_backlog(arriving: float, inside: float, ready: int, wanted: int) -> None:
    """From a fleet that is ready, and remembers nothing that would keep it larger."""
    sight = seen(arriving, inside, ready=ready, ordered=1)
    memory = Memory(peaks=((sight.now - 1.0, 1),), raised_at=-math.inf)
    assert decide(sight, LIMITS, memory)[0] == wanted


def test_a_large_fleet_needs_no_larger_share_to_spare() -> None:
    """What must be left over for waits is a number of images a second, so a thousand replicas run fuller than two."""
    for busy in (1.0, 10.0, 1000.0):
        found = need(
            Demand(busy, busy * CAPACITY, CAPACITY, 0.05), CAPACITY, 2000, LIMITS, start_s=10.0, starts_in=10.0
        )
        spare = math.log(100) / (2 * 0.45) / CAPACITY
        assert found == pytest.approx(1.1 * busy + spare)


def test_a_wait_behind_the_objective_is_started_for_only_once() -> None:
    """While ordered replicas start, the time until they come shrinks, and no more are ordered for the same images."""
    wanted, memory = decide(seen(60.0, 3.0), LIMITS, Memory())
    inside, orders = 3.0, [wanted]
    for second in range(1, 10):
        inside += 40.0
        sight = seen(60.0, inside, ready=1, ordered=orders[-1], now=1000.0 + second)
        wanted, memory = decide(sight, LIMITS, memory)
        orders.append(wanted)
    assert orders[0] == 5
    assert max(orders) <= 6


def test_fewer_are_ordered_only_after_a_quiet_time() -> None:
    """The load falls to a fifth; the order stays for 60 s and then follows."""
    memory = Memory()
    orders = []
    ordered = 5
    for second in range(80):
        ordered, memory = decide(seen(4.0, 0.2, ready=5, ordered=ordered, now=float(second)), LIMITS, memory)
        orders.append(ordered)
    assert orders[:60] == [5] * 60
    assert orders[62:] == [1] * 18


def test_a_controller_that_remembers_nothing_gives_nothing_back_at_once() -> None:
    """The order in force counts as a need until the quiet time has passed."""
    assert decide(seen(4.0, 0.2, ready=5), LIMITS, Memory())[0] == 5


@pytest.mark.parametrize(
    "sight",
    [
        seen(60.0, 500.0, ready=4, telling=1),
        seen(60.0, 500.0, ready=4, demands={}),
        seen(60.0, 500.0, ready=4, demands={"checkout": Demand(500.0, 60.0, 0.0, 0.0)}),
    ],
    ids=["most are silent", "nothing told", "nothing measured yet"],
)
def test_without_knowledge_the_order_stays(sight: Sight) -> None:
    """A fleet that cannot be seen is neither shrunk nor grown."""
    assert decide(sight, LIMITS, Memory())[0] == 4


def test_a_capacity_once_measured_is_kept() -> None:
    """When all replicas are new, what the earlier ones could do still counts."""
    _, memory = decide(seen(4.0), LIMITS, Memory())
    new = seen(60.0, demands={"checkout": Demand(0.0, 60.0, 0.0, 0.0)})
    assert decide(new, LIMITS, memory)[0] > 3


def test_the_model_that_needs_most_decides() -> None:
    """Each model has its own share of every replica."""
    demands = {"a": Demand(0.0, 4.0, CAPACITY, 0.05), "b": Demand(1.0, 30.0, 10.0, 0.1)}
    assert decide(seen(0.0, demands=demands), LIMITS, Memory())[0] >= 4


def test_an_objective_below_an_images_own_time_asks_for_a_bounded_fleet() -> None:
    """A detector of half a second cannot answer within half a second and wait; a load of nothing needs one replica."""
    slow = Demand(0.0, 0.02, 2.0, 0.5)
    assert decide(seen(0.0, demands={"a": slow}), LIMITS, Memory())[0] == 1
    busy = need(replace(slow, arriving=2.0), 2.0, 5, LIMITS, start_s=10.0, starts_in=10.0)
    assert busy < 4.0


loads = st.floats(0.0, 2000.0)
sights = st.builds(
    seen,
    loads,
    st.floats(0.0, 20_000.0),
    ready=st.integers(0, 60),
    ordered=st.integers(0, 60),
    now=st.floats(0.0, 1e6),
)
memories = st.builds(
    Memory,
    peaks=st.lists(st.tuples(st.floats(0.0, 1e6), st.integers(1, 50)), max_size=5).map(
        lambda found: tuple(
            zip(sorted(at for at, _ in found), sorted((n for _, n in found), reverse=True), strict=True)
        )
    ),
    raised_at=st.floats(-1e3, 1e6),
)


@given(sights, memories, st.integers(1, 20), st.integers(0, 30))
def test_the_order_is_within_the_bounds(sight: Sight, memory: Memory, least: int, beyond: int) -> None:
    """Whatever is seen and remembered."""
    limits = replace(LIMITS, least=least, most=least + beyond)
    assert least <= decide(sight, limits, memory)[0] <= least + beyond


@given(sights, memories, st.floats(0.0, 500.0), st.floats(0.0, 5000.0))
def test_more_load_never_orders_fewer(sight: Sight, memory: Memory, arriving: float, inside: float) -> None:
    """The order rises with the images that arrive and with those inside."""
    demand = sight.demands["checkout"]
    more = replace(demand, arriving=demand.arriving + arriving, inside=demand.inside + inside)
    assert decide(replace(sight, demands={"checkout": more}), LIMITS, memory)[0] >= decide(sight, LIMITS, memory)[0]


@given(sights, memories)
def test_never_fewer_than_the_arrivals_need(sight: Sight, memory: Memory) -> None:
    """What arrives is answered, unless the most that is allowed is less."""
    arriving = sight.demands["checkout"].arriving
    if 2 * sight.telling >= sight.ready:
        assert decide(sight, LIMITS, memory)[0] >= min(math.ceil(arriving / CAPACITY), LIMITS.most)


@given(st.integers(0, 2**32 - 1), st.floats(20.0, 800.0))
@settings(max_examples=25, deadline=None)
def test_noise_around_a_constant_load_does_not_flap(seed: int, load: float) -> None:
    """Ten minutes of Poisson arrivals: after the first, replicas come and go once or twice, not all the time."""
    random = np.random.default_rng(seed)
    counts = random.poisson(load, 600)
    memory, ordered, downs, ups = Memory(), math.ceil(1.3 * load / CAPACITY), 0, 0
    for second in range(8, 600):
        arriving = float(counts[second - 4 : second].mean())
        wanted, memory = decide(
            seen(arriving, 0.05 * arriving, ready=ordered, ordered=ordered, now=float(second)), LIMITS, memory
        )
        if second > 120:
            downs += wanted < ordered
            ups += wanted > ordered
        ordered = wanted
    assert downs <= 2
    assert ups <= 3


@given(st.floats(1.0, 600.0), st.integers(0, 256), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_a_backlog_is_gone_in_bounded_time(load: float, waiting: int, ready: int) -> None:
    """Whatever waits in however many replicas, at a load that the most replicas can answer: within five starts."""
    start_s, memory, ordered, inside = 10, Memory(), ready, float(waiting * ready)
    coming: list[int] = []
    for second in range(5 * start_s + 5):
        ready += coming.count(second)
        coming = [at for at in coming if at > second]
        inside = min(max(0.0, inside + load - ready * CAPACITY), 256.0 * ready)
        wanted, memory = decide(seen(load, inside, ready=ready, ordered=ordered, now=float(second)), LIMITS, memory)
        coming += [second + start_s] * max(wanted - ordered, 0)
        ready -= max(ordered - wanted, 0)
        ordered = wanted
    assert inside <= ready * CAPACITY * 0.5


def test_what_is_remembered_stays_small() -> None:
    """No more entries than seconds of the quiet time, however often it is asked and however the load falls."""
    memory, ordered = Memory(), 50
    for step in range(4000):
        load = 900.0 - 0.2 * step
        ordered, memory = decide(seen(max(load, 0.0), ready=ordered, ordered=ordered, now=step / 4), LIMITS, memory)
    assert len(memory.peaks) <= 61
