"""Metrics of the rollout actor: how rollouts stand and ended, how old its knowledge of the registry is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from serve.instruments import Metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.instruments import MetricsSink

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
MINUTES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Buckets of a rollout's time in seconds: a trial makes minutes of it."""
STATES: Final = (
    "starting", "preparing", "judging", "shadow", "canary", "holding", "probation", "serving", "rejected",
)  # fmt: skip
STATE: Final = Metric(
    "steelyard_rollout_state", "1 for the state that the rollout is in, 0 for the others.", ("model", "state")
)
RESULTS: Final = ("committed", "rejected", "aborted", "superseded")
ROLLOUTS: Final = Metric("steelyard_rollouts_total", "Finished rollouts by result.", ("model", "result"))
ROLLOUT_SECONDS: Final = Metric(
    "steelyard_rollout_seconds", "Time of a rollout from wish to result, trials included.", ("model", "result"), MINUTES
)


class RolloutMetrics:
    """What the observers of all models count, made once a process."""

    def __init__(self, sink: MetricsSink, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make the instruments in ``sink``. clock: monotonic seconds."""
        self.age = sink.gauge(REGISTRY_AGE)
        self.failures = sink.counter(REGISTRY_FAILURES)
        self.runs = sink.counter(RUNS)
        self.states = sink.gauge(STATE)
        self.rollouts = sink.counter(ROLLOUTS)
        self.seconds = sink.histogram(ROLLOUT_SECONDS)
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
        """Count into ``metrics`` under ``model``; what has not happened yet is shown as 0."""
        self._metrics, self._model = metrics, model
        self._read_at = metrics.clock()
        metrics.failures.inc({"model": model}, 0.0)
        for outcome in ("written", "lost"):
            metrics.runs.inc({"model": model, "outcome": outcome}, 0.0)
        for result in RESULTS:
            metrics.rollouts.inc({"model": model, "result": result}, 0.0)

    def read(self) -> None:
        """Note that the alias was read."""
        self._read_at = self._metrics.clock()

    def not_read(self) -> None:
        """Count a reading of the alias that failed."""
        self._metrics.failures.inc({"model": self._model})

    def ended(self, result: str, seconds: float) -> None:
        """Count a rollout that took ``seconds``; result: one of RESULTS."""
        labels = {"model": self._model, "result": result}
        self._metrics.rollouts.inc(labels)
        self._metrics.seconds.observe(labels, seconds)

    def stands(self, state: str) -> None:
        """Note the state that the rollout is in, one of STATES."""
        for each in STATES:
            self._metrics.states.set({"model": self._model, "state": each}, float(each == state))

    def recorded(self, outcome: str) -> None:
        """Count a rollout that the registry was told of; outcome: ``written`` or ``lost``."""
        self._metrics.runs.inc({"model": self._model, "outcome": outcome})

    def refresh(self) -> None:
        """Set the age to what it is now."""
        self._metrics.age.set({"model": self._model}, self._metrics.clock() - self._read_at)
