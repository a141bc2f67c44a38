"""The values that the two wings and the edge exchange: frozen, validated at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from models.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Head = Literal["end2end", "raw"]
"""``end2end``: output (n, k, 6) of x1, y1, x2, y2, confidence, class in tensor pixels, no NMS needed.
``raw``: output (n, 4 + classes, anchors) of cx, cy, w, h and class scores, NMS follows."""

MAX_DETECTIONS = 300


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Defaults of a release: confidence (0-1), IoU of the NMS (0-1), most boxes an image (1-300)."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = MAX_DETECTIONS

    def __post_init__(self) -> None:
        """Refuse values outside their ranges; raises InvalidOptionError."""
        for name, value in (("conf", self.conf), ("iou", self.iou)):
            if not (math.isfinite(value) and 0.0 <= value <= 1.0):
                msg = f"{name}={value} is outside 0 to 1; send a number in that range"
                raise InvalidOptionError(msg)
        if not 1 <= self.max_det <= MAX_DETECTIONS:
            msg = f"max_det={self.max_det} is outside 1 to {MAX_DETECTIONS}; send a whole number in that range"
            raise InvalidOptionError(msg)


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What one request asks for; ``None`` means the release's default. ``classes`` keeps only these ids."""

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their ranges; raises InvalidOptionError."""
        self.thresholds(Thresholds())
        if self.classes is not None and any(c < 0 for c in self.classes):
            msg = "classes holds a negative id; send the ids that GET /v1/models lists"
            raise InvalidOptionError(msg)

    def thresholds(self, defaults: Thresholds) -> Thresholds:
        """Return the thresholds in force: this request's where given, else ``defaults``."""
        return Thresholds(
            conf=defaults.conf if self.conf is None else self.conf,
            iou=defaults.iou if self.iou is None else self.iou,
            max_det=defaults.max_det if self.max_det is None else self.max_det,
        )


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Who asks, until when, under which trace: goes through every stage of the request flow."""

    request_id: str
    deadline: float
    """Moment on ``time.monotonic``'s clock (seconds) after which no answer is wanted."""
    key_id: str | None = None
    """Public id of the API key that let the request in; None where none was needed."""
    traceparent: str | None = None
    client_id: str | None = None
    """Whom the client says that it is, the same in all its requests; None where it does not say."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Boxes of one image as a struct of arrays, sorted by falling score.

    boxes: float32 (n, 4), x1 y1 x2 y2 in pixels of the upright original image.
    scores: float32 (n,), 0 to 1. classes: int32 (n,), index into the release's names.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check shapes and dtypes; raises ValueError, which is a bug of the caller."""
        n = len(self.scores)
        for name, array, shape, dtype in (
            ("boxes", self.boxes, (n, 4), np.float32),
            ("scores", self.scores, (n,), np.float32),
            ("classes", self.classes, (n,), np.int32),
        ):
            if array.shape != shape or array.dtype != dtype:
                msg = f"{name}: expected {shape} {np.dtype(dtype)}, got {array.shape} {array.dtype}. This is a bug."
                raise ValueError(msg)

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)

    @classmethod
    def empty(cls) -> Detections:
        """Return no boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds that one image spent in each stage."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    infer_ms: float = 0.0
    post_ms: float = 0.0


class Batch(NamedTuple):
    """One call of the runtime. Its moments are on the engine's clock (seconds).

    number: counts the calls of one engine. size: images in it. lane: where it ran.
    """

    number: int
    size: int
    lane: int
    begun: float
    ended: float


class Span(NamedTuple):
    """From when to when, on the engine's clock (seconds)."""

    begun: float
    ended: float


class Course(NamedTuple):
    """When one image passed each stage, and the batch that it ran in.

    queue: its wait for a lane; where lanes decode, before it was decoded, else after.
    """

    decode: Span
    queue: Span
    post: Span
    batch: Batch


@dataclass(frozen=True, slots=True)
class Contract:
    """What clients rely on: a change of any of these is a breaking change of the model.

    names: class names by id. stride: pixels, the sides of every tensor are multiples of it.
    imgsz: pixels of a tensor's long side. dynamic: False means every tensor is imgsz x imgsz.
    """

    task: Literal["detect"]
    names: tuple[str, ...]
    stride: int
    imgsz: int
    head: Head
    dynamic: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class GoldenImage:
    """One picture of the sight test: its encoded bytes and what torch fp32 sees in it."""

    name: str
    data: bytes
    expected: Detections


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """One weight version, verified and complete in memory: all that an engine needs.

    digest: 64 hex digits, sha256 of the manifest's canonical bytes; names the content, not the version.
    files: file name in the release -> uint8 (size,), e.g. ``model.onnx``; zero-copy across processes.
    """

    model: str
    version: str
    digest: str
    contract: Contract
    thresholds: Thresholds
    files: Mapping[str, NDArray[np.uint8]]
    golden: tuple[GoldenImage, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ident(self) -> ReleaseId:
        """Return the name of this release, cheap to copy."""
        return ReleaseId(self.model, self.version, self.digest)


@dataclass(frozen=True, slots=True)
class ReleaseId:
    """The name of a release: model, version as the registry counts it, digest of its content."""

    model: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the engine says of one image, and which one release said it.

    shape: (height, width) in pixels of the upright original image.
    generation: the fleet's generation under which the batch took its lease.
    course: None from an engine that keeps none.
    """

    detections: Detections
    shape: tuple[int, int]
    timings: Timings
    release: ReleaseId
    generation: int
    backend: str
    names: tuple[str, ...]
    thresholds: Thresholds
    course: Course | None = None
