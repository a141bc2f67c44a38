"""Choosing the plan, and naming the shapes that will come."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.warm import _rate, common_shapes, load_fastest
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


def test_where_lone_calls_take_all_threads_the_most_lanes_win_a_draw(make_release: Callable) -> None:
    """Fewer lanes answer nobody sooner there, so they must be clearly faster."""
    plans = [Plan(4, 1, alone=True), Plan(1, 1)]
    draw, _ = chosen(make_release, lambda lanes: 0.01 * lanes, plans, 1000.0)
    loss, _ = chosen(make_release, lambda lanes: 0.014 * lanes if lanes > 1 else 0.01, plans, 1000.0)
    assert (draw.lanes, loss.lanes) == (4, 1)


def test_the_budget_ends_the_search(make_release: Callable) -> None:
    """When time is up the best so far serves."""
    plan, backend = chosen(make_release, lambda _lanes: 0.01, PLANS, 0.0)
    assert (plan, len(backend.sessions)) == (Plan(4, 1), 1)


def test_it_measures_the_commonest_shape(make_release: Callable) -> None:
    """The form that the measurement makes is the one that a release needs first."""
    _, backend = chosen(make_release, lambda _lanes: 0.01, PLANS, 1000.0)
    first = common_shapes(make_release().contract)[0]
    assert {call.shape for call in backend.calls} == {first}
    assert all(session.warmed == {first} for session in backend.sessions)


def test_a_single_plan_is_not_measured(make_release: Callable) -> None:
    """Nothing is run when there is nothing to choose."""
    _, backend = chosen(make_release, lambda _lanes: 0.01, [Plan(3, 2)], 10.0)
    assert not backend.calls


def test_a_failing_measurement_frees_what_it_loaded(make_release: Callable) -> None:
    """An error leaves no session open, and nothing on disk that may be what is wrong."""
    backend = FakeBackend(infer_error=BackendError("broken"))
    backend.found = True
    with pytest.raises(BackendError):
        load_fastest(backend, make_release(), PLANS, budget_s=10.0)
    assert all(session.closed for session in backend.sessions)
    assert not backend.found


def test_common_shapes_follow_the_contract() -> None:
    """Landscape, portrait and square; only the square without dynamic shapes."""
    assert common_shapes(Contract("detect", ("a",), 32, 640, "raw")) == ((480, 640), (640, 480), (640, 640))
    assert common_shapes(Contract("detect", ("a",), 32, 640, "raw", dynamic=False)) == ((640, 640),)


def test_a_rate_counts_the_lanes_that_work_at_once(make_release: Callable[..., Release]) -> None:
    """Of three lanes that decode, one waits for its turn: calls of 10 ms on two threads are 200 a second, not 300."""
    clock = FakeClock(lambda _lanes: 0.01)
    clock.lanes = 2
    backend = FakeBackend(1.0, sleep=clock.sleep)
    session = backend.load(make_release(), Plan(3, 1, decodes=True))
    clock.now = 0.0
    assert _rate(session, (64, 64), clock) == pytest.approx(200)
    assert {call.lane for call in backend.calls} == {0, 1}
