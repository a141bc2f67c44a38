"""What a metric is, and the instruments that a sink makes of it: counters, gauges and histograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: Prometheus name, what it means, label names, and buckets where it is a histogram."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


class Counter(Protocol):
    """A number that only grows."""

    def inc(self, labels: Mapping[str, str], amount: float = 1.0) -> None:
        """Add ``amount`` >= 0 under ``labels``; 0 shows the series, so that its first increase is seen as one."""
        ...


class Gauge(Protocol):
    """A number that goes up and down."""

    def set(self, labels: Mapping[str, str], value: float) -> None:
        """Set the value under ``labels``."""
        ...


class Histogram(Protocol):
    """A distribution over the metric's buckets."""

    def observe(self, labels: Mapping[str, str], value: float) -> None:
        """Count ``value`` under ``labels``."""
        ...


class MetricsSink(Protocol):
    """Makes the instruments. Each is asked for once a process and kept by whoever asked."""

    def counter(self, metric: Metric) -> Counter:
        """Return the counter of ``metric``."""
        ...

    def gauge(self, metric: Metric) -> Gauge:
        """Return the gauge of ``metric``."""
        ...

    def histogram(self, metric: Metric) -> Histogram:
        """Return the histogram of ``metric``; its buckets are given."""
        ...
