"""Metrics of a replica: a sink on Ray's metrics, which Ray's agent exposes a node at a time, and the way to read them.

A client that asks ``/metrics`` reaches one replica of several, so the route answers with the exposition of the node:
Ray's own metrics, HAProxy's, and those of all replicas, each under the prefix ``ray_``.
"""

from __future__ import annotations

import asyncio
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.util import metrics as ray_metrics

from models.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from serve.instruments import Metric

FETCH_DEADLINE_S: Final = 5.0


_Series = tuple[tuple[str, str], ...]


class _Counter:
    """Adds up what it counts and tells Ray in ``refresh``: telling it costs a tenth of a millisecond each time."""

    def __init__(self, counter: Any) -> None:
        self._counter = counter
        self._untold: dict[_Series, float] = {}

    def inc(self, labels: Mapping[str, str], amount: float = 1.0) -> None:
        series = tuple(labels.items())
        self._untold[series] = self._untold.get(series, 0.0) + amount

    def refresh(self) -> None:
        untold, self._untold = self._untold, {}
        for series, amount in untold.items():
            if amount > 0.0:
                self._counter.inc(amount, tags=dict(series))
            else:
                # Ray's ``inc`` refuses 0, but a series that begins with 1 hides its first event from ``increase``.
                self._counter._record(0.0, tags=dict(series))  # noqa: SLF001


class _Gauge:
    """Keeps its values and tells Ray in ``refresh``, which forgets a gauge that was not set since its last reports."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._values: dict[_Series, float] = {}

    def set(self, labels: Mapping[str, str], value: float) -> None:
        self._values[tuple(labels.items())] = value

    def refresh(self) -> None:
        for series, value in self._values.items():
            self._gauge.set(value, tags=dict(series))


class _Histogram:
    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram

    def observe(self, labels: Mapping[str, str], value: float) -> None:
        self._histogram.observe(value, tags=dict(labels))


class RaySink:
    """Fulfils ``serve.instruments.MetricsSink`` on Ray's metrics; every series carries the replica's id."""

    def __init__(self, replica: str) -> None:
        """Label every series with ``replica``."""
        self._replica = {"replica": replica}
        self._told: list[_Counter | _Gauge] = []

    def counter(self, metric: Metric) -> _Counter:
        """Return the counter of ``metric``. Ray appends ``_total`` itself."""
        name = metric.name.removesuffix("_total")
        made = ray_metrics.Counter(name, metric.meaning, self._keys(metric))
        counter = _Counter(made.set_default_tags(self._replica))
        self._told.append(counter)
        return counter

    def gauge(self, metric: Metric) -> _Gauge:
        """Return the gauge of ``metric``."""
        made = ray_metrics.Gauge(metric.name, metric.meaning, self._keys(metric))
        gauge = _Gauge(made.set_default_tags(self._replica))
        self._told.append(gauge)
        return gauge

    def histogram(self, metric: Metric) -> _Histogram:
        """Return the histogram of ``metric``."""
        made = ray_metrics.Histogram(metric.name, metric.meaning, list(metric.buckets), self._keys(metric))
        return _Histogram(made.set_default_tags(self._replica))

    def refresh(self) -> None:
        """Tell Ray what was counted since the last call, and every gauge's value. Call it about once a second."""
        for each in self._told:
            each.refresh()

    @staticmethod
    def _keys(metric: Metric) -> tuple[str, ...]:
        return (*metric.labels, "replica")


class NodeExposition:
    """Reads the exposition of the node that this process runs on."""

    def __init__(self) -> None:
        """Look nothing up yet."""
        self._url: str | None = None

    async def read(self) -> bytes:
        """Return the node's metrics in Prometheus' text format. Raises UnavailableError."""
        try:
            async with asyncio.timeout(FETCH_DEADLINE_S):
                if self._url is None:
                    self._url = await asyncio.to_thread(_exposition_url)
                return await asyncio.to_thread(_fetch, self._url)
        except (TimeoutError, LookupError, OSError) as error:
            msg = "The metrics of this node cannot be read now; ask again"
            raise UnavailableError(msg) from error


def _fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=FETCH_DEADLINE_S) as response:
        content: bytes = response.read()
        return content


def _exposition_url() -> str:
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node["MetricsExportPort"]:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    raise LookupError(here)
