"""What the rollout actor counts."""

from __future__ import annotations

from serve.prometheus import PrometheusSink
from serve.rollout_metrics import STATES, RolloutMetrics


def test_the_age_grows_until_the_alias_is_read() -> None:
    """A model each; one whose alias was never read is as old as the actor."""
    now = [100.0]
    sink = PrometheusSink()
    metrics = RolloutMetrics(sink, clock=lambda: now[0])
    one, two = metrics.of("a"), metrics.of("b")
    now[0] = 130.0
    one.read()
    now[0] = 132.5
    metrics.refresh()
    for model, age in (("a", 2.5), ("b", 32.5)):
        assert f'steelyard_registry_age_seconds{{model="{model}"}} {age}\n' in sink.render().decode()
    two.read()
    metrics.refresh()
    assert 'steelyard_registry_age_seconds{model="b"} 0.0\n' in sink.render().decode()


def test_failed_readings_and_told_rollouts_are_counted() -> None:
    """By model and outcome."""
    sink = PrometheusSink()
    observer = RolloutMetrics(sink).of("a")
    for _ in range(3):
        observer.not_read()
    observer.recorded("written")
    observer.recorded("lost")
    text = sink.render().decode()
    for line in (
        'steelyard_registry_read_failures_total{model="a"} 3.0',
        'steelyard_rollout_runs_total{model="a",outcome="written"} 1.0',
        'steelyard_rollout_runs_total{model="a",outcome="lost"} 1.0',
    ):
        assert f"{line}\n" in text


def test_a_rollout_is_in_one_state_and_ends_once() -> None:
    """All states and results are there from the start, so that the first of each is seen as an increase."""
    sink = PrometheusSink()
    observer = RolloutMetrics(sink).of("a")
    assert 'steelyard_rollouts_total{model="a",result="rejected"} 0.0' in sink.render().decode()
    observer.stands("preparing")
    observer.stands("rejected")
    observer.ended("rejected", 3.0)
    text = sink.render().decode()
    for line in (
        'steelyard_rollout_state{model="a",state="preparing"} 0.0',
        'steelyard_rollout_state{model="a",state="rejected"} 1.0',
        'steelyard_rollouts_total{model="a",result="rejected"} 1.0',
        'steelyard_rollouts_total{model="a",result="committed"} 0.0',
        'steelyard_rollout_seconds_bucket{le="5.0",model="a",result="rejected"} 1.0',
    ):
        assert f"{line}\n" in text
    assert text.count("steelyard_rollout_state{") == len(STATES)
