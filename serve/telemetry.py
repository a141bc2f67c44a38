"""What the service tells operators: metric names and buckets, the engine's events counted, log lines in JSON.

Metrics go to a ``MetricsSink``, so that this module knows neither Ray nor Prometheus' client.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.engine.backends.backend import Shape
    from models.types import Answer, ReleaseId

_log = logging.getLogger(__name__)

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of durations in seconds: dense where one image on a CPU or GPU lies."""
LONG_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
BATCH_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: Prometheus name, what it means, label names, and buckets where it is a histogram."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


REQUESTS: Final = Metric("steelyard_http_requests_total", "HTTP requests answered.", ("route", "method", "status"))
REQUEST_SECONDS: Final = Metric("steelyard_http_request_seconds", "Time to answer.", ("route",), SECONDS)
IMAGES: Final = Metric("steelyard_images_total", "Images by outcome: ok, or an error's code.", ("model", "outcome"))
ANSWERS: Final = Metric("steelyard_answers_total", "Images answered, by version.", ("model", "version"))
BOXES: Final = Metric(
    "steelyard_boxes_total", "Boxes found, by version; a blind version finds none.", ("model", "version")
)
SAMPLED: Final = 4
"""Of so many images or batches one counts in the histograms of stages and batches: Ray takes 0.1 ms an observation."""
STAGE_SECONDS: Final = Metric(
    "steelyard_stage_seconds", "Time in a stage, of every fourth image.", ("model", "stage"), SECONDS
)
BATCH_IMAGES: Final = Metric("steelyard_batch_images", "Images in every fourth batch.", ("model",), BATCH_SIZES)
BATCH_SECONDS: Final = Metric("steelyard_batch_seconds", "Time of every fourth runtime call.", ("model",), SECONDS)
BATCH_FAILURES: Final = Metric("steelyard_batch_failures_total", "Batches that failed as a whole.", ("model",))
QUEUED: Final = Metric("steelyard_queued_images", "Images waiting after the latest batch left.", ("model",))
PREPARE_SECONDS: Final = Metric(
    "steelyard_prepare_seconds", "Time to load, warm and test a release.", ("model",), LONG_SECONDS
)
FLIPS: Final = Metric("steelyard_flips_total", "Changes of the serving release.", ("model",))
GENERATION: Final = Metric("steelyard_generation", "Generation of the serving release.", ("model",))
SERVING: Final = Metric(
    "steelyard_serving", "1 for the version that serves, 0 for earlier ones.", ("model", "version", "digest")
)
HOLD_SECONDS: Final = Metric("steelyard_hold_seconds", "Time in which a swap let no batch start.", ("model",), SECONDS)
FREED: Final = Metric("steelyard_releases_freed_total", "Retired releases whose memory was given back.", ("model",))
COMPILED: Final = Metric("steelyard_shapes_compiled_total", "Shapes compiled in the background.", ("model", "outcome"))


class Counter(Protocol):
    """A number that only grows."""

    def inc(self, labels: Mapping[str, str], amount: float = 1.0) -> None:
        """Add ``amount`` >= 0 under ``labels``."""
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


class HttpMetrics:
    """Counts requests at the edge."""

    def __init__(self, sink: MetricsSink) -> None:
        """Make the instruments in ``sink``."""
        self._requests = sink.counter(REQUESTS)
        self._seconds = sink.histogram(REQUEST_SECONDS)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request; ``route`` is the path's template, never the path a client made up."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "OTHER"
        self._requests.inc({"route": route, "method": known, "status": str(status)})
        self._seconds.observe({"route": route}, seconds)


class EngineMetrics:
    """The engine's Observer: counts the events of every model's engine, made once a process."""

    def __init__(self, sink: MetricsSink) -> None:
        """Make the instruments in ``sink``."""
        self.images = sink.counter(IMAGES)
        self.answers = sink.counter(ANSWERS)
        self.boxes = sink.counter(BOXES)
        self.stage = sink.histogram(STAGE_SECONDS)
        self.batch_images = sink.histogram(BATCH_IMAGES)
        self.batch_seconds = sink.histogram(BATCH_SECONDS)
        self.batch_failures = sink.counter(BATCH_FAILURES)
        self.queued = sink.gauge(QUEUED)
        self.prepare = sink.histogram(PREPARE_SECONDS)
        self.flips = sink.counter(FLIPS)
        self.generation = sink.gauge(GENERATION)
        self.serving = sink.gauge(SERVING)
        self.hold = sink.histogram(HOLD_SECONDS)
        self.freed = sink.counter(FREED)
        self.compiled = sink.counter(COMPILED)

    def of(self, model: str) -> EngineObserver:
        """Return the Observer for the engine of ``model``."""
        return EngineObserver(self, model)


class EngineObserver:
    """Fulfils ``models.engine.observe.Observer`` for one model."""

    def __init__(self, metrics: EngineMetrics, model: str) -> None:
        """Count into ``metrics`` under ``model``."""
        self._metrics = metrics
        self._model = {"model": model}
        self._ok = {"model": model, "outcome": "ok"}
        self._stages = [{"model": model, "stage": stage} for stage in ("decode", "queue", "infer", "post")]
        self._serving: dict[str, str] | None = None
        self._answers, self._started, self._finished = count(), count(), count()

    def answered(self, answer: Answer) -> None:
        """Count one answered image, its boxes and its stages."""
        labels = {**self._model, "version": answer.release.version}
        self._metrics.images.inc(self._ok)
        self._metrics.answers.inc(labels)
        self._metrics.boxes.inc(labels, float(len(answer.detections)))
        if next(self._answers) % SAMPLED:
            return
        timings = answer.timings
        stages = (timings.decode_ms, timings.queue_ms, timings.infer_ms, timings.post_ms)
        for stage, milliseconds in zip(self._stages, stages, strict=True):
            self._metrics.stage.observe(stage, milliseconds / 1e3)

    def refused(self, code: str) -> None:
        """Count one image that was not answered."""
        self._metrics.images.inc({**self._model, "outcome": code})

    def batch_started(self, release: ReleaseId, size: int, queued: int) -> None:  # noqa: ARG002 - the protocol's
        """Count one batch and note the queue it left."""
        if next(self._started) % SAMPLED == 0:
            self._metrics.batch_images.observe(self._model, float(size))
        self._metrics.queued.set(self._model, float(queued))

    def batch_finished(self, release: ReleaseId, size: int, seconds: float, error: BaseException | None) -> None:  # noqa: ARG002
        """Count one batch's time, or its failure."""
        if error is not None:
            self._metrics.batch_failures.inc(self._model)
        elif next(self._finished) % SAMPLED == 0:
            self._metrics.batch_seconds.observe(self._model, seconds)

    def prepared(self, release: ReleaseId, seconds: float) -> None:
        """Count one prepared release."""
        self._metrics.prepare.observe(self._model, seconds)
        _log.info("prepared", extra={**self._model, "version": release.version, "ms": round(1e3 * seconds, 3)})

    def flipped(self, release: ReleaseId, generation: int) -> None:
        """Count one flip and name the version that serves."""
        if self._serving is not None:
            self._metrics.serving.set(self._serving, 0.0)
        self._serving = {**self._model, "version": release.version, "digest": release.digest}
        self._metrics.serving.set(self._serving, 1.0)
        self._metrics.generation.set(self._model, float(generation))
        self._metrics.flips.inc(self._model)
        _log.info("flipped", extra={**self._serving, "generation": generation})

    def held(self, seconds: float) -> None:
        """Count one hold."""
        self._metrics.hold.observe(self._model, seconds)
        _log.info("held", extra={**self._model, "ms": round(1e3 * seconds, 3)})

    def freed(self, release: ReleaseId) -> None:  # noqa: ARG002 - the protocol's
        """Count one retired release whose memory was given back."""
        self._metrics.freed.inc(self._model)

    def compiled(self, release: ReleaseId, shape: Shape, error: BaseException | None) -> None:  # noqa: ARG002
        """Count one compiled shape, or its failure."""
        self._metrics.compiled.inc({**self._model, "outcome": "ok" if error is None else "failed"})
