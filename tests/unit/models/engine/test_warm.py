"""Choosing the plan, and keeping warm shapes within the budget."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.warm import COMPILE_AFTER, ShapeCache, common_shapes, load_fastest
from models.errors import BackendError
from models.types import Contract

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release


class FakeClock:
    """Moves only when somebody sleeps; calls on different lanes share the time, as if they ran side by side."""

    def __init__(self, seconds_a_call: Callable[[int], float]) -> None:
        """Take the seconds of one call as a function of the number of lanes."""
        self.now = 0.0
        self.lanes = 1
        self.seconds_a_call = seconds_a_call
        self.lock = threading.Lock()

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now

    def sleep(self, _seconds: float) -> None:
        """Spend one call's share."""
        with self.lock:
            self.now += self.seconds_a_call(self.lanes) / self.lanes


def chosen(
    make_release: Callable[..., Release], seconds_a_call: Callable[[int], float], plans: list[Plan], budget_s: float
) -> tuple[Plan, FakeBackend]:
    """Return the plan that wins, and the backend that was tried."""
    clock = FakeClock(seconds_a_call)
    backend = FakeBackend(1.0, sleep=clock.sleep)
    load = backend.load

    def load_under(release: Release, plan: Plan) -> object:
        clock.lanes = plan.lanes
        return load(release, plan)

    backend.load = load_under
    session = load_fastest(backend, make_release(), plans, budget_s=budget_s, clock=clock)
    assert [other for other in backend.sessions if not other.closed] == [session]
    return session.plan, backend


PLANS = [Plan(4, 1), Plan(2, 1), Plan(1, 1)]


@pytest.mark.parametrize(
    ("seconds_a_call", "winner"),
    [
        (lambda _lanes: 0.01, 4),
        (lambda lanes: 0.01 * lanes, 1),
        (lambda lanes: 0.01 * lanes / (1 + 0.02 * lanes), 1),
        (lambda lanes: {4: 0.04, 2: 0.01, 1: 0.01}[lanes], 2),
    ],
)
def test_the_fastest_plan_wins(make_release: Callable, seconds_a_call: Callable, winner: int) -> None:
    """Many lanes win where they are clearly faster; at about equal speed the fewest do."""
    assert chosen(make_release, seconds_a_call, PLANS, 1000.0)[0] == Plan(winner, 1)


def test_the_budget_ends_the_search(make_release: Callable) -> None:
    """When time is up the best so far serves."""
    plan, backend = chosen(make_release, lambda _lanes: 0.01, PLANS, 0.0)
    assert (plan, len(backend.sessions)) == (Plan(4, 1), 1)


def test_a_single_plan_is_not_measured(make_release: Callable) -> None:
    """Nothing is run when there is nothing to choose."""
    _, backend = chosen(make_release, lambda _lanes: 0.01, [Plan(3, 2)], 10.0)
    assert not backend.calls


def test_a_failing_measurement_frees_what_it_loaded(make_release: Callable) -> None:
    """An error leaves no session open."""
    backend = FakeBackend(infer_error=BackendError("broken"))
    with pytest.raises(BackendError):
        load_fastest(backend, make_release(), PLANS, budget_s=10.0)
    assert all(session.closed for session in backend.sessions)


def test_common_shapes_follow_the_contract() -> None:
    """Square, landscape and portrait; only the square without dynamic shapes."""
    assert common_shapes(Contract("detect", ("a",), 32, 640, "raw")) == ((640, 640), (480, 640), (640, 480))
    assert common_shapes(Contract("detect", ("a",), 32, 640, "raw", dynamic=False)) == ((640, 640),)


def test_a_shape_earns_its_warmth_once(make_release: Callable) -> None:
    """Rare shapes stay cold; the image that crosses the threshold says so, no other does."""
    cache, session = ShapeCache(10**9), FakeBackend().load(make_release())
    said = [cache.note(session, (32, 64), 3) for _ in range(20)]
    assert said.count(True) == 1
    assert said.index(True) == (COMPILE_AFTER - 1) // 3
    cache.warm(session, (64, 64))
    assert not any(cache.note(session, (64, 64), 100) for _ in range(3))


@given(uses=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 8)), max_size=40), budget=st.integers(0, 60_000))
def test_the_budget_is_kept(make_release: Callable, uses: list[tuple[int, int]], budget: int) -> None:
    """Warm shapes never cost more than the budget together, and the sessions agree with the cache."""
    backend = FakeBackend()
    sessions = [backend.load(make_release(letter)) for letter in "ab"]
    cache = ShapeCache(budget)
    for which, height in uses:
        cache.warm(sessions[which], (height * 32, 32))
        cost = sum(session.shape_cost(shape) for session in sessions for shape in session.warmed)
        assert cost <= budget
        for session in sessions:
            assert set(cache.shapes(session)) == session.warmed


def test_the_least_recently_used_goes_first(make_release: Callable) -> None:
    """Using a shape keeps it warm."""
    session = FakeBackend().load(make_release())
    cache = ShapeCache(2 * session.shape_cost((32, 32)))
    cache.warm(session, (32, 32))
    cache.warm(session, (16, 64))
    cache.note(session, (32, 32), 1)
    cache.warm(session, (64, 16))
    assert cache.shapes(session) == ((64, 16), (32, 32))
    cache.drop(session)
    assert cache.shapes(session) == ()


def test_a_failed_warming_is_forgotten(make_release: Callable) -> None:
    """What could not be compiled takes no budget and may be tried again."""
    session = FakeBackend().load(make_release())

    def fail(_shape: object) -> None:
        msg = "no"
        raise BackendError(msg)

    warm, session.warm = session.warm, fail
    cache = ShapeCache(10**9)
    with pytest.raises(BackendError):
        cache.warm(session, (32, 32))
    assert cache.shapes(session) == ()
    session.warm = warm
    cache.warm(session, (32, 32))
    assert cache.shapes(session) == ((32, 32),)
