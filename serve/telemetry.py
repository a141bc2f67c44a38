"""What the service tells operators: metric names and buckets, the engine's events counted, log lines in JSON.

Metrics go to a ``MetricsSink``, so that this module knows neither Ray nor Prometheus' client.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, Final

from serve.instruments import Metric
from serve.sight_metrics import SightMetrics, SightObserver

if TYPE_CHECKING:
    from models.engine.backends.backend import Shape
    from models.types import Answer, ReleaseId
    from serve.instruments import MetricsSink

_log = logging.getLogger(__name__)

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of durations in seconds: dense where one image on a CPU or GPU lies."""
LONG_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
MOST_VERSIONS: Final = 16
OTHER: Final = "other"
METHODS: Final = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
OUTCOMES: Final = (
    "ok", "cancelled", "overloaded", "deadline_exceeded", "unavailable", "backend_failed", "invalid_image",
    "unsupported_image", "image_too_large", "invalid_option",
)  # fmt: skip
"""How an image may end in an engine; shown as 0 from the start."""
BATCH_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


REQUESTS: Final = Metric("steelyard_http_requests_total", "HTTP requests answered.", ("route", "method", "status"))
REQUEST_SECONDS: Final = Metric("steelyard_http_request_seconds", "Time to answer.", ("route",), SECONDS)
IN_FLIGHT: Final = Metric("steelyard_http_requests_in_flight", "HTTP requests that are being answered.", ())
IMAGES: Final = Metric("steelyard_images_total", "Images by outcome: ok, or an error's code.", ("model", "outcome"))
ANSWERS: Final = Metric("steelyard_answers_total", "Images answered, by version.", ("model", "version"))
BOXES: Final = Metric(
    "steelyard_boxes_total", "Boxes found, by version; a blind version finds none.", ("model", "version")
)
SAMPLED: Final = 4
"""Of so many images or batches one counts in the histograms of stages and batches: Ray takes 0.1 ms an observation."""
STAGES: Final = ("decode", "queue", "infer", "post")
STAGE_SECONDS: Final = Metric(
    "steelyard_stage_seconds", "Time in a stage, of every fourth image.", ("model", "version", "stage"), SECONDS
)
BATCH_IMAGES: Final = Metric("steelyard_batch_images", "Images in every fourth batch.", ("model",), BATCH_SIZES)
BATCH_SECONDS: Final = Metric("steelyard_batch_seconds", "Time of every fourth runtime call.", ("model",), SECONDS)
BATCH_FAILURES: Final = Metric(
    "steelyard_batch_failures_total", "Batches that failed as a whole.", ("model", "version")
)
LANE_SECONDS: Final = Metric("steelyard_lane_seconds_total", "Time that batches took on lanes.", ("model",))
LANES: Final = Metric("steelyard_lanes", "Batches that may run at once.", ("model",))
QUEUED: Final = Metric("steelyard_queued_images", "Images waiting, those being decoded included.", ("model",))
RUNNING: Final = Metric("steelyard_batches_running", "Batches that run.", ("model",))
LEASES: Final = Metric("steelyard_leases", "Holds on loaded releases; none while nothing runs.", ("model",))
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


class VersionNames:
    """The label ``version``: the first MOST_VERSIONS of a process have their own, so that series stay bounded."""

    def __init__(self) -> None:
        """Know no version yet."""
        self._known: set[str] = set()

    def of(self, version: str) -> str:
        """Return the label of ``version``."""
        if version in self._known:
            return version
        if len(self._known) >= MOST_VERSIONS:
            return OTHER
        self._known.add(version)
        return version


def method_label(method: str) -> str:
    """Return ``method``, or ``OTHER`` for one that a client made up: what it wrote is kept nowhere."""
    return method if method in METHODS else "OTHER"


class HttpMetrics:
    """Counts requests at the edge."""

    def __init__(self, sink: MetricsSink) -> None:
        """Make the instruments in ``sink``."""
        self._requests = sink.counter(REQUESTS)
        self._seconds = sink.histogram(REQUEST_SECONDS)
        self._in_flight = sink.gauge(IN_FLIGHT)
        self._now = 0

    def entered(self) -> None:
        """Note one request that is being answered from now on."""
        self._now += 1
        self._in_flight.set({}, float(self._now))

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one request that ended; ``route`` is the path's template, never the path a client made up."""
        self._now -= 1
        self._in_flight.set({}, float(self._now))
        self._requests.inc({"route": route, "method": method_label(method), "status": str(status)})
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
        self.lane_seconds = sink.counter(LANE_SECONDS)
        self.lanes = sink.gauge(LANES)
        self.queued = sink.gauge(QUEUED)
        self.running = sink.gauge(RUNNING)
        self.leases = sink.gauge(LEASES)
        self.prepare = sink.histogram(PREPARE_SECONDS)
        self.flips = sink.counter(FLIPS)
        self.generation = sink.gauge(GENERATION)
        self.serving = sink.gauge(SERVING)
        self.hold = sink.histogram(HOLD_SECONDS)
        self.freed = sink.counter(FREED)
        self.compiled = sink.counter(COMPILED)
        self.sight = SightMetrics(sink)

    def of(self, model: str) -> EngineObserver:
        """Return the Observer for the engine of ``model``."""
        return EngineObserver(self, model)


class EngineObserver:
    """Fulfils ``models.engine.observe.Observer`` for one model."""

    def __init__(self, metrics: EngineMetrics, model: str) -> None:
        """Count into ``metrics`` under ``model``; what has not happened yet is shown as 0."""
        self._metrics = metrics
        self._model = {"model": model}
        self._ok = {"model": model, "outcome": "ok"}
        self._versions = VersionNames()
        self._sight = SightObserver(metrics.sight, model)
        self._serving: dict[str, str] | None = None
        for outcome in OUTCOMES:
            metrics.images.inc({**self._model, "outcome": outcome}, 0.0)
        for outcome in ("ok", "failed"):
            metrics.compiled.inc({**self._model, "outcome": outcome}, 0.0)
        for counter in (metrics.flips, metrics.freed, metrics.lane_seconds):
            counter.inc(self._model, 0.0)
        self._answers, self._started, self._finished = count(), count(), count()

    def answered(self, answer: Answer) -> None:
        """Count one answered image, its boxes and its stages."""
        labels = {**self._model, "version": self._name(answer.release)}
        self._metrics.images.inc(self._ok)
        self._metrics.answers.inc(labels)
        self._metrics.boxes.inc(labels, float(len(answer.detections)))
        if next(self._answers) % SAMPLED:
            return
        timings = answer.timings
        stages = (timings.decode_ms, timings.queue_ms, timings.infer_ms, timings.post_ms)
        for stage, milliseconds in zip(STAGES, stages, strict=True):
            self._metrics.stage.observe({**labels, "stage": stage}, milliseconds / 1e3)

    def looked(self, answer: Answer) -> None:
        """Note what the version saw; it is counted in ``sampled``."""
        self._sight.looked(self._name(answer.release), answer.detections)

    def refused(self, code: str) -> None:
        """Count one image that was not answered."""
        self._metrics.images.inc({**self._model, "outcome": code})

    def batch_started(self, release: ReleaseId, size: int, queued: int) -> None:  # noqa: ARG002 - the protocol's
        """Count one batch and note the queue it left."""
        if next(self._started) % SAMPLED == 0:
            self._metrics.batch_images.observe(self._model, float(size))
        self._metrics.queued.set(self._model, float(queued))

    def sampled(self, queued: int, running: int, leases: int, lanes: int) -> None:
        """Note what waits, runs and is held now: the queue may also empty without a batch, when clients leave."""
        self._sight.tell()
        self._metrics.queued.set(self._model, float(queued))
        self._metrics.lanes.set(self._model, float(lanes))
        self._metrics.running.set(self._model, float(running))
        self._metrics.leases.set(self._model, float(leases))

    def batch_finished(self, release: ReleaseId, size: int, seconds: float, error: BaseException | None) -> None:  # noqa: ARG002
        """Count one batch's time, or its failure."""
        self._metrics.lane_seconds.inc(self._model, seconds)
        if error is not None:
            self._metrics.batch_failures.inc({**self._model, "version": self._name(release)})
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
        by_version = {**self._model, "version": self._name(release)}
        for counter in (self._metrics.answers, self._metrics.boxes, self._metrics.batch_failures):
            counter.inc(by_version, 0.0)
        self._sight.begin(by_version["version"])
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

    def _name(self, release: ReleaseId) -> str:
        return self._versions.of(release.version)
