"""The step of load: its schedule, its figures, its verdicts."""

from __future__ import annotations

import json
from typing import Any

import autoscaling
import autoscaling_figures as figures
import pytest
from connection import Outcome
from loops import Exchange

PHASES = (figures.Phase("calm", 4.0, 30.0), figures.Phase("step", 60.0, 120.0), figures.Phase("after", 4.0, 60.0))


def exchange(due: float, seconds: float = 0.06, status: int = 200, *, retry_after: bool = True) -> Exchange:
    """Return one request."""
    return Exchange(due, 0.0, seconds, Outcome(status, retry_after=retry_after))


def story() -> list[Exchange]:
    """Return a run that follows: slow for 20 s after the step, with two refusals."""
    made = [exchange(at / 2, 2.0 if 30.0 <= at / 2 < 50.0 else 0.06) for at in range(420)]
    return [*made, exchange(40.0, 0.001, 429), exchange(41.0, 0.001, 429)]


REPLICAS = [(1.0, 1), (30.0, 1), (43.0, 2), (44.0, 4), (150.0, 4), (182.0, 3), (184.0, 1)]


def judged(exchanges: list[Exchange]) -> dict[str, Any]:
    """Return what the exchanges showed."""
    return figures.judge(exchanges, REPLICAS, PHASES, objective_s=0.5, capacity=20.0)


def test_a_fleet_that_follows_reaches_every_goal() -> None:
    """Times count from the step that they belong to."""
    found = judged(story())
    assert (found["first_more_s"], found["enough_s"], found["back_s"], found["first_fewer_s"]) == (
        13.0,
        14.0,
        34.0,
        32.0,
    )
    assert (found["recovered_s"], found["refused"], found["last_refused_s"], found["most_replicas"]) == (
        20.0,
        2,
        11.0,
        4,
    )
    assert found["settled_p99_ms"] == pytest.approx(60.0)
    assert all(met for _, met in figures.verdicts(found, 0.5))


@pytest.mark.parametrize(
    ("more", "goal"),
    [
        (exchange(95.0, 0.001, 429), "no refusal"),
        (exchange(40.0, 0.001, 429, retry_after=False), "when to come back"),
        (exchange(40.0, 0.1, 503), "no 5xx"),
        (exchange(40.0, 0.1, 0), "no broken"),
        (exchange(40.0, 0.1, 400), "no broken"),
    ],
)
def test_each_goal_can_be_missed(more: Exchange, goal: str) -> None:
    """One request is enough."""
    missed = [name for name, met in figures.verdicts(judged([*story(), more]), 0.5) if not met]
    assert len(missed) == 1
    assert goal in missed[0]


def test_a_fleet_that_stays_is_told() -> None:
    """No replica comes, none goes, and latency never recovers."""
    slow = [exchange(at / 2, 3.0) for at in range(420)]
    found = figures.judge(slow, [(1.0, 1), (200.0, 1)], PHASES, objective_s=0.5, capacity=20.0)
    missed = {name for name, met in figures.verdicts(found, 0.5) if not met}
    assert "replicas follow the step" in missed
    assert any(name.startswith("p99") for name in missed)
    assert found["recovered_s"] is None


def test_one_slow_window_later_is_counted_and_does_not_undo_the_recovery() -> None:
    """Three windows in a row are a recovery; what comes after them stands beside it."""
    again = [exchange(100.0 + at / 100, 2.0) for at in range(100)]
    found = judged([*story(), *again])
    assert (found["recovered_s"], found["windows_missed_later"]) == (20.0, 1)


def test_windows_count_a_request_where_it_was_due() -> None:
    """A slow answer belongs to the second in which it was wanted."""
    rows = figures.windows([exchange(1.0, 9.0), exchange(6.0, 0.1, 503), exchange(7.0, 0.1, 429)], 12.0)
    assert [(row["sent"], row["answered"], row["refused"], row["failed"]) for row in rows] == [
        (1, 1, 0, 0),
        (2, 0, 1, 1),
    ]
    assert rows[0]["p99_ms"] == 9000.0
    assert rows[1]["p99_ms"] is None


def test_the_schedule_changes_its_rate_with_the_phases() -> None:
    """Rising, within the run, and about as many requests as the rates say."""
    times = autoscaling.schedule_of(PHASES, seed=1)
    assert times == sorted(times)
    assert times[-1] < 210.0
    step = sum(30.0 <= at < 150.0 for at in times)
    assert step == pytest.approx(7200, rel=0.05)
    assert len(times) - step == pytest.approx(360, rel=0.25)


def test_the_picture_is_a_small_jpeg() -> None:
    """The generator and the decoder share two cores with the replicas."""
    made = autoscaling.picture()
    assert made[:2] == b"\xff\xd8"
    assert len(made) < 40_000


def test_the_result_is_a_report_and_a_figure() -> None:
    """Both are made of what is written as JSON."""
    result = {
        "machine": {"date": "2026-01-02 03:04 UTC", "commit": "abc", "cpu": "A CPU", "cores": 2},
        "objective_s": 0.5,
        "judged": judged(story()),
        "windows": figures.windows(story(), 210.0),
        "replicas": REPLICAS,
    }
    result = json.loads(json.dumps(result))
    text = autoscaling.markdown(result)
    assert "missed" not in text
    assert "| 429 | 2 of 422, the last after 11 s |" in text
    assert len(autoscaling.draw(result).axes) == 3


@pytest.mark.parametrize("arguments", [["--high", "10"], ["--most", "0"], ["--load", "99"]])
def test_senseless_options_are_refused(arguments: list[str]) -> None:
    """Before a service is started."""
    with pytest.raises(SystemExit) as caught:
        autoscaling.parse(arguments)
    assert caught.value.code == 2
