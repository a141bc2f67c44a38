"""What a lane does with images: decode where lanes do that, infer, postprocess. Blocks; runs on a lane's thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.engine.batch import late
from models.engine.decode import examine
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import BackendError, SteelyardError
from models.types import Batch, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from models.engine.batch import Lane
    from models.engine.decode import DecodeLimits
    from models.engine.decode_budget import DecodeBudget
    from models.engine.preprocess import Placement
    from models.engine.slots import Lease
    from models.types import Contract, Detections, DetectOptions, Release, Thresholds


class Begun(NamedTuple):
    """That a lane took up an image: digest of the release, moment on the clock (seconds)."""

    digest: str
    at: float


@dataclass(slots=True, eq=False)
class Job:
    """One decoded image. ``geometry`` is what of the contract shaped its tensor; ``begun`` is set by its lane."""

    tensor: NDArray[np.uint8]
    placement: Placement
    geometry: tuple[int, int, bool]
    options: DetectOptions
    decode: Span
    begun: Begun | None = None


@dataclass(slots=True, eq=False)
class Encoded:
    """One image that its lane will decode; the lane sets ``begun``, and ``shape`` to that of the tensor it made."""

    data: bytes
    options: DetectOptions
    deadline: float
    shape: tuple[int, int] | None = None
    begun: Begun | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was found in one image, by whom and when. ``original``: (height, width)."""

    detections: Detections
    original: tuple[int, int]
    release: Release
    generation: int
    thresholds: Thresholds
    decode: Span
    post: Span
    batch: Batch

    @property
    def infer_s(self) -> float:
        """Return the seconds that the runtime took for the batch."""
        return self.batch.ended - self.batch.begun

    @property
    def post_s(self) -> float:
        """Return the seconds from the runtime's output to the boxes."""
        return self.post.ended - self.post.begun


class Detecting:
    """The blocking part of the request path."""

    def __init__(
        self,
        limits: DecodeLimits,
        budget: DecodeBudget,
        check_open: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decode within ``limits`` and ``budget``; ``check_open`` raises when nothing is answered any more."""
        self._limits = limits
        self._budget = budget
        self._check_open = check_open
        self._clock = clock
        self._numbers = count()

    def make_job(self, data: bytes, options: DetectOptions, contract: Contract, deadline: float) -> Job:
        """Decode one image for a network of ``contract``.

        Raises InvalidImageError and its kin, DeadlineExceededError, or what ``check_open`` raises.
        """
        self._check_open()
        begun = self._clock()
        if begun >= deadline:
            raise late()
        image = examine(data, self._limits)
        with self._budget.hold(image.memory, deadline):
            tensor, placement = letterbox(image.pixels(), contract)
        return Job(tensor, placement, geometry_of(contract), options, Span(begun, self._clock()))

    def run(self, lease: Lease, jobs: Sequence[Job | Encoded], lane: Lane) -> list[Seen | Exception | None]:
        """Return what became of each image of a batch; None for one whose tensor must be made anew for this release.

        Raises BackendError where the runtime failed on the batch.
        """
        decoded: list[Job] = []
        begun = Begun(lease.release.digest, self._clock())
        for job in jobs:
            if isinstance(job, Encoded):
                return [self._answer(lease, each, lane) for each in jobs if isinstance(each, Encoded)]
            job.begun = begun
            decoded.append(job)
        return self._infer(lease, decoded, lane)

    def _answer(self, lease: Lease, image: Encoded, lane: Lane) -> Seen | Exception | None:
        try:
            job = self.make_job(image.data, image.options, lease.release.contract, image.deadline)
        except SteelyardError as error:
            return error
        # Only now: an image that takes long to decode says nothing against the release.
        image.begun = Begun(lease.release.digest, self._clock())
        image.shape = (job.tensor.shape[0], job.tensor.shape[1])
        return self._infer(lease, [job], lane)[0]

    def _infer(self, lease: Lease, jobs: Sequence[Job], lane: Lane) -> list[Seen | Exception | None]:
        contract = lease.release.contract
        if jobs[0].geometry != geometry_of(contract):
            return [None] * len(jobs)
        begun = self._clock()
        batch = jobs[0].tensor[None] if len(jobs) == 1 else np.stack([job.tensor for job in jobs])
        outputs = lease.session.infer(batch, lane.number, alone=lane.alone)
        call = Batch(next(self._numbers), len(jobs), lane.number, begun, self._clock())
        if len(outputs) != len(jobs):
            msg = "the network answered another number of images than it was given; register the model again"
            raise BackendError(msg)
        return [self._see(lease, job, output, call) for job, output in zip(jobs, outputs, strict=True)]

    def _see(self, lease: Lease, job: Job, output: NDArray[np.float32], batch: Batch) -> Seen | Exception:
        begun = self._clock()
        release = lease.release
        thresholds = job.options.thresholds(release.thresholds)
        try:
            found = postprocess(output, job.placement, release.contract, thresholds, job.options.classes)
        except BackendError as error:
            return error
        post = Span(begun, self._clock())
        return Seen(found, job.placement.original, release, lease.generation, thresholds, job.decode, post, batch)


def geometry_of(contract: Contract) -> tuple[int, int, bool]:
    """Return what of a contract shapes a tensor."""
    return contract.imgsz, contract.stride, contract.dynamic
