"""A Service without engines, registry or rollout: deterministic answers, and faults on demand."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from models.errors import InvalidImageError, ReleaseRejectedError, UnknownVersionError
from models.rollout.order import PLAIN
from models.types import Answer, Contract, Detections, Release, Thresholds, Timings
from models.weights.registry import VersionInfo
from serve.faults import FaultPoints
from serve.service import OPERATOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models.rollout.order import Order
    from models.types import DetectOptions, RequestContext
    from serve.webhook import Delivery

NAMES: Final = ("apple", "banana", "bread", "tv, small")
SHAPE: Final = (480, 640)
_BOXES: Final = 4


def fake_release(model: str = "checkout", version: str = "1", names: tuple[str, ...] = NAMES) -> Release:
    """Return a release without files whose digest follows from its name."""
    digest = hashlib.sha256(f"{model}/{version}".encode()).hexdigest()
    contract = Contract(task="detect", names=names, stride=32, imgsz=640, head="end2end")
    return Release(model, version, digest, contract, Thresholds(), files={}, metrics={"map50_95": 0.5})


@dataclass(slots=True)
class FakeDetector:
    """Answers every non-empty byte string with boxes that follow from the bytes and the release.

    before: called at each detect with the call's number from 0; may raise, wait or flip, as an engine would.
    """

    serving: Release | None = field(default_factory=fake_release)
    generation: int = 1
    backend_name: str = "fake"
    before: Callable[[int], object] | None = None
    calls: int = 0
    running: int = 0
    contexts: list[RequestContext] = field(default_factory=list)

    def flip(self, release: Release) -> None:
        """Serve ``release`` from now on, one generation further."""
        self.serving = release
        self.generation += 1

    async def detect(self, data: bytes, options: DetectOptions, context: RequestContext) -> Answer:
        """Return the boxes of ``data``. Raises InvalidImageError where it is no more than text."""
        number = self.calls
        self.calls += 1
        self.running += 1
        self.contexts.append(context)
        try:
            release, generation = self.serving, self.generation
            assert release is not None  # noqa: S101 - the edge asks for the names first
            if self.before is not None:
                waiting = self.before(number)
                if asyncio.iscoroutine(waiting):
                    await waiting
            if data.isascii():
                msg = "The image cannot be read; send a complete JPEG, PNG or WebP file"
                raise InvalidImageError(msg)
            thresholds = options.thresholds(release.thresholds)
            return Answer(
                detections=_keep(_boxes(data, release), options, thresholds),
                shape=SHAPE,
                timings=Timings(1.5, 0.25, 8.125, 0.5),
                release=release.ident,
                generation=generation,
                backend=self.backend_name,
                names=release.contract.names,
                thresholds=thresholds,
            )
        finally:
            self.running -= 1


def _boxes(data: bytes, release: Release) -> Detections:
    seed = np.frombuffer(hashlib.sha256(data + release.digest.encode()).digest()[:8], np.uint32)
    random = np.random.default_rng(seed.tolist())
    height, width = SHAPE
    corners = np.sort(random.random((_BOXES, 2, 2)), axis=1) * (width, height)
    scores = np.sort(random.random(_BOXES))[::-1]
    classes = random.integers(0, len(release.contract.names), _BOXES)
    return Detections(
        corners.reshape(_BOXES, 4).astype(np.float32), scores.astype(np.float32), classes.astype(np.int32)
    )


def _keep(found: Detections, options: DetectOptions, thresholds: Thresholds) -> Detections:
    kept = found.scores >= thresholds.conf
    if options.classes is not None:
        kept &= np.isin(found.classes, sorted(options.classes))
    rows = np.flatnonzero(kept)[: thresholds.max_det]
    return Detections(found.boxes[rows], found.scores[rows], found.classes[rows])


class FakeService:
    """Fulfils ``serve.service.Service`` over fake detectors; promote and rollback flip at once."""

    def __init__(self, *models: str) -> None:
        """Serve ``models`` (``checkout`` where none is named), each with versions 1, 2 and a blind 3."""
        self.detectors = {name: FakeDetector(fake_release(name)) for name in models or ("checkout",)}
        self.armed: dict[str, str] = {}
        self.not_ready: str | None = None
        self.fault: Exception | None = None
        """Raised by every call of the control plane while set."""
        self.exposition = b"# HELP steelyard_up Fake.\n"
        self.previous: dict[str, str] = {}
        self.orders: list[tuple[str, str, Order]] = []
        """Version, reason and order of every promote that was accepted."""
        self.who: list[str] = []
        """Who asked for each of them."""
        self.hints: list[tuple[str, str]] = []
        """Model and delivery id of every hint taken."""

    @property
    def engines(self) -> Mapping[str, FakeDetector]:
        """Return the fake detectors by name."""
        return self.detectors

    async def status(self, model: str) -> dict[str, object]:
        """Return a rollout that has converged."""
        self._check()
        detector = self.detectors[model]
        version = detector.serving.version if detector.serving else None
        replicas = [{"id": "replica-1", "version": version, "state": "serving"}]
        return {
            "model": model,
            "desired": version,
            "serving": version,
            "generation": detector.generation,
            "state": "converged",
            "step": None,
            "reason": None,
            "trial": None,
            "probation": None,
            "verdicts": [],
            "replicas": replicas,
        }

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN, who: str = OPERATOR
    ) -> dict[str, object]:
        """Flip to version 1 or 2, refuse 3, know no other; ``orders`` and ``who`` note what was accepted."""
        self._check()
        if version == "3":
            msg = "Version 3 sees nothing on its golden images; train it further and register it again"
            raise ReleaseRejectedError(msg, step="promote")
        if version not in ("1", "2"):
            msg = f"Model {model} has no version {version[:64]!r}; GET /v1/models/{model}/versions lists them"
            raise UnknownVersionError(msg)
        self.orders.append((version, reason, order))
        self.who.append(who)
        serving = self.detectors[model].serving
        if serving is not None:
            self.previous[model] = serving.version
        self.detectors[model].flip(fake_release(model, version))
        return await self.status(model)

    async def rollback(self, model: str, *, who: str = OPERATOR) -> dict[str, object]:
        """Flip back to the version before the latest promote."""
        self._check()
        if model not in self.previous:
            msg = "There is no earlier version to return to; promote one instead"
            raise ReleaseRejectedError(msg, step="promote")
        return await self.promote(model, self.previous[model], who=who)

    async def hint(self, model: str, delivery: Delivery) -> bool:
        """Note the hint in ``hints``, once a delivery."""
        self._check()
        if delivery.ident in {ident for _, ident in self.hints}:
            return False
        self.hints.append((model, delivery.ident))
        return True

    async def arm(self, point: str, action: str) -> None:
        """Note the fault in ``armed``; raises InvalidOptionError for a point that does not exist."""
        FaultPoints(allowed=True).arm(point, action)
        self.armed[point] = action

    async def versions(self, model: str) -> Sequence[VersionInfo]:
        """Return the three versions."""
        self._check()
        first = VersionInfo(
            model, "1", "", "ready", "true", "0" * 64, "2026-01-01T00:00:00Z", metrics={"map50_95": 0.5}
        )
        infos = [replace(first, version=version, digest=fake_release(model, version).digest) for version in "123"]
        serving = self.detectors[model].serving
        return [
            replace(info, aliases=("production",)) if serving and info.version == serving.version else info
            for info in infos
        ]

    def readiness(self) -> str | None:
        """Return what the test set."""
        return self.not_ready

    async def metrics(self) -> bytes:
        """Return what the test set."""
        self._check()
        return self.exposition

    def _check(self) -> None:
        if self.fault is not None:
            raise self.fault
