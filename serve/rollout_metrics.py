"""Metrics of the rollout actor: how old its knowledge of the registry is, and what it could not write there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from serve.telemetry import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.telemetry import MetricsSink

REGISTRY_AGE: Final = Metric(
    "steelyard_registry_age_seconds",
    "Time since the production alias was last read; since the rollout actor began where it never was.",
    ("model",),
)
REGISTRY_FAILURES: Final = Metric(
    "steelyard_registry_read_failures_total", "Readings of the production alias that failed.", ("model",)
)
RUNS: Final = Metric(
    "steelyard_rollout_runs_total",
    "Finished rollouts told to the registry, by outcome: written, or lost after all tries.",
    ("model", "outcome"),
)


class RolloutMetrics:
    """What the observers of all models count, made once a process."""

    def __init__(self, sink: MetricsSink, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make the instruments in ``sink``. clock: monotonic seconds."""
        self.age = sink.gauge(REGISTRY_AGE)
        self.failures = sink.counter(REGISTRY_FAILURES)
        self.runs = sink.counter(RUNS)
        self.clock = clock
        self._observers: list[RolloutObserver] = []

    def of(self, model: str) -> RolloutObserver:
        """Return what counts for ``model``."""
        observer = RolloutObserver(self, model)
        self._observers.append(observer)
        return observer

    def refresh(self) -> None:
        """Bring the ages up to date; call it before the sink tells its gauges."""
        for observer in self._observers:
            observer.refresh()


class RolloutObserver:
    """Counts for one model."""

    def __init__(self, metrics: RolloutMetrics, model: str) -> None:
        """Count into ``metrics`` under ``model``."""
        self._metrics, self._model = metrics, model
        self._read_at = metrics.clock()

    def read(self) -> None:
        """Note that the alias was read."""
        self._read_at = self._metrics.clock()

    def not_read(self) -> None:
        """Count a reading of the alias that failed."""
        self._metrics.failures.inc({"model": self._model})

    def recorded(self, outcome: str) -> None:
        """Count a rollout that the registry was told of; outcome: ``written`` or ``lost``."""
        self._metrics.runs.inc({"model": self._model, "outcome": outcome})

    def refresh(self) -> None:
        """Set the age to what it is now."""
        self._metrics.age.set({"model": self._model}, self._metrics.clock() - self._read_at)
