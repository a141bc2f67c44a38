"""The policy as Ray Serve's controller calls it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from models.scaling.work import Work, WorkMeter
from serve.autoscaling import DECIDE_S, SIGNALS, START, QueuePolicy, Workload, autoscaling_options, heard
from serve.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")

SETTINGS = Settings(min_replicas=1, max_replicas=8)


def told(works: dict[str, Work], at: float, *, model: str = "checkout", start_s: float = 10.0) -> dict[str, Any]:
    """Return Ray's raw metrics of replicas that told ``works`` at ``at``, and something older before."""

    def points(value: float) -> list[Any]:
        return [SimpleNamespace(timestamp=at - 1.0, value=0.0), SimpleNamespace(timestamp=at, value=value)]

    series = {f"{name}:{model}": {rid: points(getattr(work, name)) for rid, work in works.items()} for name in SIGNALS}
    return series | {START: {rid: points(start_s) for rid in works}}


def context(raw: Any, *, now: float = 100.0, ordered: int = 1, ready: int = 1, state: Any = None) -> AutoscalingContext:
    """Return what Ray's controller hands to a policy."""
    config = AutoscalingConfig(**autoscaling_options(SETTINGS))
    return AutoscalingContext(
        deployment_id=None,
        deployment_name="detector",
        app_name="a",
        current_num_replicas=ready,
        target_num_replicas=ordered,
        running_replicas=[],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=None,
        raw_metrics=lambda: raw,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={} if state is None else state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=config,
    )


def policy() -> QueuePolicy:
    """Return the policy as its options make it."""
    return QueuePolicy(**autoscaling_options(SETTINGS)["policy"]["policy_kwargs"])


def test_what_waits_in_the_replicas_orders_more() -> None:
    """Sixty images a second arrive at a replica of twenty."""
    wanted, _ = policy()(context(told({"r1": Work(40, 60.0, 5.0, 20.0, 0.05)}, 99.5)))
    assert wanted >= 4


def test_ray_asks_through_its_wrapper_and_gets_the_order_at_once() -> None:
    """No delay or factor of Ray's own comes on top, up or down, and the state survives its merging."""
    wrapped = _apply_autoscaling_config(policy())
    busy = told({"r1": Work(40, 60.0, 5.0, 20.0, 0.05)}, 99.5)
    wanted, state = wrapped(context(busy))
    assert wanted >= 4
    later = 100.0
    for _ in range(130):
        later += 1.0
        calm = told({f"r{n}": Work(0, 1.0, 0.0, 20.0, 0.05) for n in range(wanted)}, later)
        now_wanted, state = wrapped(context(calm, now=later, ordered=wanted, ready=wanted, state=state))
        if now_wanted < wanted:
            break
    assert now_wanted == 1
    assert later == pytest.approx(100.0 + SETTINGS.scale_down_after_s, abs=3.0)


def test_the_controller_can_unpickle_it() -> None:
    """Ray pickles the policy where the application is built and makes an instance in the controller."""
    config = AutoscalingConfig(**autoscaling_options(SETTINGS))
    made = cloudpickle.loads(config.policy.get_serialized_policy_def())(**config.policy.policy_kwargs)
    assert made(context(told({"r1": Work(40, 60.0, 5.0, 20.0, 0.05)}, 99.5)))[0] >= 4
    json.dumps(config.policy.policy_kwargs)


def test_nothing_is_decided_twice_within_a_second() -> None:
    """Ray asks four times a second; the reports come once."""
    calls: list[int] = []

    def raw() -> dict[str, Any]:
        calls.append(1)
        return told({"r1": Work(0, 0.0, 0.0, 20.0, 0.05)}, 100.0)

    asked = policy()
    state: Any = None
    for quarter in range(8):
        ctx = context(None, now=100.0 + quarter / 4, state=state)
        ctx._raw_metrics_value = raw
        _, state = asked(ctx)
    assert len(calls) == 2
    assert DECIDE_S == 1.0


def test_a_replica_that_has_fallen_silent_is_not_heard() -> None:
    """Its last words are not what it holds now."""
    series = told({"r1": Work(5, 1.0, 0.0, 20.0, 0.05)}, 50.0)
    assert heard(series, 100.0) == ({}, [])
    works, starts = heard(series, 55.0)
    assert works == {"checkout": [Work(5, 1.0, 0.0, 20.0, 0.05)]}
    assert starts == [10.0]


def test_before_anything_is_told_the_order_stays() -> None:
    """A controller that has just started knows nothing yet."""
    assert policy()(context({}, ordered=5, ready=5))[0] == 5
    assert policy()(context(None, ordered=5, ready=5))[0] == 5


def test_what_a_replica_tells_is_heard_as_it_was_told() -> None:
    """The names of the signals are the same on both sides, for every model, a name with a colon included."""
    meters = {"a": WorkMeter(), "b:c": WorkMeter()}
    engine = SimpleNamespace(inside=3, images_a_second=20.0, image_s=0.05)
    workload = Workload(dict.fromkeys(meters, engine), meters, lambda: 1.0)
    signals = workload.tell() | {START: 9.0}
    assert all(isinstance(value, float) for value in signals.values())
    points = {name: {"r": [SimpleNamespace(timestamp=1.0, value=value)]} for name, value in signals.items()}
    works, starts = heard(points, 1.0)
    assert works == {model: [Work(3.0, 0.0, 0.0, 20.0, 0.05)] for model in meters}
    assert starts == [9.0]
