"""The sink without Ray."""

from __future__ import annotations

import prometheus_client
import pytest

from serve.prometheus import PrometheusSink
from serve.telemetry import GENERATION, IMAGES


def test_two_sinks_do_not_meet() -> None:
    """Each has its own registry; the process-wide one stays untouched."""
    first, second = PrometheusSink(), PrometheusSink()
    first.gauge(GENERATION).set({"model": "a"}, 7.0)
    second.gauge(GENERATION)
    assert b'steelyard_generation{model="a"} 7.0' in first.render()
    assert b"7.0" not in second.render()
    assert b"steelyard" not in prometheus_client.generate_latest()


def test_a_metric_made_twice_is_a_mistake() -> None:
    """Two owners of one name would hide each other's numbers."""
    sink = PrometheusSink()
    sink.counter(IMAGES)
    with pytest.raises(ValueError, match="steelyard_images"):
        sink.counter(IMAGES)
