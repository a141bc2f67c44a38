"""A MetricsSink on Prometheus' own client with a registry of its own: for tests, and for services without Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from serve.instruments import Metric


class _Counter:
    def __init__(self, counter: prometheus_client.Counter) -> None:
        self._counter = counter

    def inc(self, labels: Mapping[str, str], amount: float = 1.0) -> None:
        self._counter.labels(**labels).inc(amount)


class _Gauge:
    def __init__(self, gauge: prometheus_client.Gauge) -> None:
        self._gauge = gauge

    def set(self, labels: Mapping[str, str], value: float) -> None:
        (self._gauge.labels(**labels) if labels else self._gauge).set(value)


class _Histogram:
    def __init__(self, histogram: prometheus_client.Histogram) -> None:
        self._histogram = histogram

    def observe(self, labels: Mapping[str, str], value: float) -> None:
        self._histogram.labels(**labels).observe(value)


class PrometheusSink:
    """Fulfils ``serve.instruments.MetricsSink`` and renders what it holds."""

    def __init__(self) -> None:
        """Start empty: the client's process-wide registry is left alone."""
        self._registry = CollectorRegistry()

    def counter(self, metric: Metric) -> _Counter:
        """Return the counter of ``metric``; asked twice for one name, the client raises ValueError."""
        return _Counter(prometheus_client.Counter(metric.name, metric.meaning, metric.labels, registry=self._registry))

    def gauge(self, metric: Metric) -> _Gauge:
        """Return the gauge of ``metric``."""
        return _Gauge(prometheus_client.Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry))

    def histogram(self, metric: Metric) -> _Histogram:
        """Return the histogram of ``metric``."""
        return _Histogram(
            prometheus_client.Histogram(
                metric.name, metric.meaning, metric.labels, registry=self._registry, buckets=metric.buckets
            )
        )

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
