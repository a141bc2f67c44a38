"""The engine's events as metrics."""

from __future__ import annotations

import logging
import re

import numpy as np
import orjson
import pytest

from models.types import Answer, Detections, ReleaseId, Thresholds, Timings
from serve import telemetry
from serve.instruments import Metric
from serve.logs import JsonFormatter
from serve.prometheus import PrometheusSink
from serve.telemetry import EngineMetrics, HttpMetrics

ONE = ReleaseId("checkout", "1", "a" * 64)
TWO = ReleaseId("checkout", "2", "b" * 64)


def answer() -> Answer:
    """Return an answer with two boxes."""
    found = Detections(np.zeros((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int32))
    return Answer(found, (1, 1), Timings(1.0, 2.0, 30.0, 4.0), ONE, 1, "fake", ("a",), Thresholds())


def test_every_event_of_the_engine_is_counted() -> None:
    """Each of the Observer's methods moves its metric."""
    sink = PrometheusSink()
    observer = EngineMetrics(sink).of("checkout")
    observer.answered(answer())
    observer.refused("overloaded")
    observer.batch_started(ONE, 3, 2)
    observer.looked(answer())
    observer.sampled(5, 2, 3, 4)
    observer.batch_finished(ONE, 3, 0.04, None)
    observer.batch_finished(ONE, 3, 0.04, RuntimeError())
    observer.prepared(ONE, 1.5)
    observer.flipped(ONE, 1)
    observer.flipped(TWO, 2)
    observer.held(0.0125)
    observer.freed(ONE)
    observer.compiled(TWO, (640, 480), None)
    observer.compiled(TWO, (640, 480), RuntimeError())
    text = sink.render().decode()
    for line in (
        'steelyard_images_total{model="checkout",outcome="ok"} 1.0',
        'steelyard_images_total{model="checkout",outcome="overloaded"} 1.0',
        'steelyard_answers_total{model="checkout",version="1"} 1.0',
        'steelyard_boxes_total{model="checkout",version="1"} 2.0',
        'steelyard_stage_seconds_sum{model="checkout",stage="infer",version="1"} 0.03',
        'steelyard_stage_seconds_bucket{le="0.03",model="checkout",stage="infer",version="1"} 1.0',
        'steelyard_batch_images_sum{model="checkout"} 3.0',
        'steelyard_batch_seconds_count{model="checkout"} 1.0',
        'steelyard_batch_failures_total{model="checkout",version="1"} 1.0',
        'steelyard_lane_seconds_total{model="checkout"} 0.08',
        'steelyard_lanes{model="checkout"} 4.0',
        'steelyard_sight_answers_total{model="checkout",version="1"} 1.0',
        'steelyard_sight_boxes_total{class="0",model="checkout",version="1"} 2.0',
        'steelyard_queued_images{model="checkout"} 5.0',
        'steelyard_batches_running{model="checkout"} 2.0',
        'steelyard_leases{model="checkout"} 3.0',
        'steelyard_prepare_seconds_sum{model="checkout"} 1.5',
        'steelyard_flips_total{model="checkout"} 2.0',
        'steelyard_generation{model="checkout"} 2.0',
        f'steelyard_serving{{digest="{"a" * 64}",model="checkout",version="1"}} 0.0',
        f'steelyard_serving{{digest="{"b" * 64}",model="checkout",version="2"}} 1.0',
        'steelyard_hold_seconds_sum{model="checkout"} 0.0125',
        'steelyard_releases_freed_total{model="checkout"} 1.0',
        'steelyard_shapes_compiled_total{model="checkout",outcome="ok"} 1.0',
        'steelyard_shapes_compiled_total{model="checkout",outcome="failed"} 1.0',
    ):
        assert line in text, line


def test_histograms_of_stages_and_batches_take_every_fourth() -> None:
    """The first counts, then every fourth; answers, boxes and failures are counted each."""
    sink = PrometheusSink()
    observer = EngineMetrics(sink).of("checkout")
    for size in range(1, 10):
        observer.answered(answer())
        observer.batch_started(ONE, size, 0)
        observer.batch_finished(ONE, size, 0.04, RuntimeError() if size % 3 == 0 else None)
    text = sink.render().decode()
    for line in (
        'steelyard_answers_total{model="checkout",version="1"} 9.0',
        'steelyard_stage_seconds_count{model="checkout",stage="infer",version="1"} 3.0',
        'steelyard_batch_images_sum{model="checkout"} 15.0',
        'steelyard_batch_seconds_count{model="checkout"} 2.0',
        'steelyard_batch_failures_total{model="checkout",version="1"} 3.0',
    ):
        assert line in text, line


def test_a_swap_can_be_followed_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Load, flip and hold are a line each, with the fields that a log line may have."""
    observer = EngineMetrics(PrometheusSink()).of("checkout")
    with caplog.at_level(logging.INFO, "serve.telemetry"):
        observer.prepared(TWO, 1.5)
        observer.flipped(TWO, 2)
        observer.held(0.0125)
    lines = [orjson.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [line["message"] for line in lines] == ["prepared", "flipped", "held"]
    assert [line.get("ms") for line in lines] == [1500.0, None, 12.5]
    assert (lines[1]["version"], lines[1]["generation"], lines[1]["digest"]) == ("2", 2, "b" * 64)


def test_several_models_share_one_set_of_instruments() -> None:
    """A process with two engines makes each metric once."""
    sink = PrometheusSink()
    metrics = EngineMetrics(sink)
    metrics.of("checkout").refused("x")
    metrics.of("street").refused("x")
    assert b'{model="street",outcome="x"} 1.0' in sink.render()


def test_what_has_not_happened_yet_is_shown_as_nothing() -> None:
    """A counter that begins with 1 hides its first event from ``increase``, and with it from the alert on it."""
    sink = PrometheusSink()
    EngineMetrics(sink).of("checkout").flipped(ONE, 1)
    text = sink.render().decode()
    for line in (
        'steelyard_images_total{model="checkout",outcome="overloaded"} 0.0',
        'steelyard_images_total{model="checkout",outcome="image_too_large"} 0.0',
        'steelyard_answers_total{model="checkout",version="1"} 0.0',
        'steelyard_batch_failures_total{model="checkout",version="1"} 0.0',
        'steelyard_shapes_compiled_total{model="checkout",outcome="failed"} 0.0',
        'steelyard_sight_empty_total{model="checkout",version="1"} 0.0',
    ):
        assert line in text, line


def test_the_versions_of_a_long_life_do_not_fill_the_scrape() -> None:
    """The first sixteen keep their names, further ones share one; what serves is always named."""
    sink = PrometheusSink()
    observer = EngineMetrics(sink).of("checkout")
    for number in range(1, telemetry.MOST_VERSIONS + 4):
        observer.flipped(ReleaseId("checkout", str(number), "a" * 64), number)
    observer.flipped(ReleaseId("checkout", "1", "a" * 64), 99)
    text = sink.render().decode()
    answers = re.findall(r'^steelyard_answers_total\{model="checkout",version="(\w+)"', text, re.MULTILINE)
    assert answers == [*map(str, range(1, 17)), "other"]
    assert f'steelyard_serving{{digest="{"a" * 64}",model="checkout",version="19"}} 0.0' in text


def test_a_method_that_a_client_makes_up_is_no_new_series() -> None:
    """Labels come from a fixed set, so that nobody can fill the memory with series."""
    sink = PrometheusSink()
    HttpMetrics(sink).request("/v1/detect", "BREW", 405, 0.001)
    assert b'method="OTHER"' in sink.render()


@pytest.mark.parametrize("metric", [value for value in vars(telemetry).values() if isinstance(value, Metric)])
def test_names_follow_the_convention(metric: Metric) -> None:
    """Own prefix, base units, rising buckets, a meaning for each."""
    assert re.fullmatch(r"steelyard_[a-z_]+", metric.name)
    assert metric.meaning.endswith(".")
    assert list(metric.buckets) == sorted(set(metric.buckets))
