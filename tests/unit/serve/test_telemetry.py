"""The engine's events as metrics."""

from __future__ import annotations

import logging
import re

import numpy as np
import orjson
import pytest

from models.types import Answer, Detections, ReleaseId, Thresholds, Timings
from serve import telemetry
from serve.logs import JsonFormatter
from serve.prometheus import PrometheusSink
from serve.telemetry import EngineMetrics, HttpMetrics, Metric

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
    observer.batch_started(ONE, 3, 5)
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
        'steelyard_stage_seconds_sum{model="checkout",stage="infer"} 0.03',
        'steelyard_stage_seconds_bucket{le="0.03",model="checkout",stage="infer"} 1.0',
        'steelyard_batch_images_sum{model="checkout"} 3.0',
        'steelyard_batch_seconds_count{model="checkout"} 1.0',
        'steelyard_batch_failures_total{model="checkout"} 1.0',
        'steelyard_queued_images{model="checkout"} 5.0',
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
        'steelyard_stage_seconds_count{model="checkout",stage="infer"} 3.0',
        'steelyard_batch_images_sum{model="checkout"} 15.0',
        'steelyard_batch_seconds_count{model="checkout"} 2.0',
        'steelyard_batch_failures_total{model="checkout"} 3.0',
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
