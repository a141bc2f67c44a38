"""The engine: the request path of one model, and the releases it moves through.

detect:  decode + letterbox (pool) -> queue -> batch, infer, postprocess (lane) -> Answer
         queue -> decode + letterbox, infer, postprocess (lane) -> Answer, where lanes decode
weights: prepare (worker) -> candidate -> [trial] -> hold -> flip -> resume; the old one stays as ``previous``
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import cv2

from models.engine.admission import Door
from models.engine.batch import Batcher, late
from models.engine.canary import check_canary
from models.engine.decode import MAX_MEMORY, MIB, DecodeLimits
from models.engine.decode_budget import DecodeBudget
from models.engine.detect import Detecting, Encoded, geometry_of
from models.engine.forms import Form, FormCache
from models.engine.observe import NullObserver
from models.engine.pace import Pace
from models.engine.prepare import Preparer
from models.engine.priority import Background
from models.engine.residents import Residents
from models.engine.throughput import Throughput
from models.engine.trial import Trial
from models.engine.watch import Watch
from models.errors import (
    BackendError,
    DeadlineExceededError,
    InvalidOptionError,
    SteelyardError,
    UnavailableError,
)
from models.types import Answer, Course, DetectOptions, Span, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from types import TracebackType

    from models.engine.backends.backend import Backend
    from models.engine.batch import Lane
    from models.engine.detect import Job, Seen
    from models.engine.observe import Observer
    from models.engine.prepare import SightTest
    from models.engine.slots import Lease
    from models.evidence import Evidence
    from models.types import Contract, Detections, Release, RequestContext

MOST_LANES = 64
CLOSE_GRACE_S = 10.0
"""Longest time that running batches may take when the engine closes."""
CANARY_TIMEOUT_S = 10.0
OVERRUN_S = 2.0
"""Seconds on a lane after which an image whose time runs out there counts as failed by the release, not by the load."""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Group(NamedTuple):
    """Images that may share a batch: digest of the candidate that they are for, "" for what serves, and their shape."""

    digest: str
    shape: Hashable


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Knobs of one engine.

    lanes, max_batch: the plan; None lets the first preparation measure. max_queue: images that may wait, decoding
    included. threads: CPU threads for decoding. max_bytes, max_pixels, max_side: limits on one image.
    memory_budget_mb: MiB for loaded networks and their warm shapes together. decode_budget_mb: MiB that images may take
    while they are decoded, all together; one that is larger goes alone, up to this or ``decode.MAX_MEMORY``.
    """

    lanes: int | None = None
    max_batch: int | None = None
    max_queue: int = 256
    threads: int = field(default_factory=_cores)
    max_bytes: int = 20 * MIB
    max_pixels: int = 64_000_000
    max_side: int = 16_384
    memory_budget_mb: int = 1500
    decode_budget_mb: int = 256


class Engine:
    """Answers images with one model's active release. Everything but the constructor belongs to one event loop."""

    def __init__(
        self,
        backend: Backend,
        settings: EngineSettings | None = None,
        *,
        sight_test: SightTest | None = None,
        observer: Observer | None = None,
        budget: DecodeBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an engine without a release; ``async with`` it.

        Args:
            backend: the runtime.
            settings: None means the defaults.
            sight_test: what a release must pass before it may become the candidate; None lets every release pass.
            observer: told of every event.
            budget: for decoding, shared with other engines of the process; None makes one of ``decode_budget_mb``.
            clock: seconds on ``time.monotonic``'s clock, which the deadlines of requests are on.

        """
        self._settings = settings or EngineSettings()
        self._backend = backend
        self._observer: Observer = observer or NullObserver()
        self._clock = clock
        limits = self._settings
        most = max(limits.decode_budget_mb * MIB, MAX_MEMORY)
        within = DecodeLimits(limits.max_bytes, limits.max_pixels, limits.max_side, most)
        budget = budget or DecodeBudget(limits.decode_budget_mb * MIB, clock)
        self._detecting = Detecting(within, budget, self._check_open, clock)
        forms = FormCache(limits.memory_budget_mb * MIB)
        background = Background()
        preparer = Preparer(backend, forms, sight_test, limits.lanes, limits.max_batch, clock, background)
        self._residents = Residents(preparer, self._observer, clock)
        self._slots = self._residents.slots
        self._decoders = ThreadPoolExecutor(limits.threads, thread_name_prefix="decode")
        workers = max(replace(plan, lanes=limits.lanes or plan.lanes).workers for plan in backend.plans())
        self._lanes = ThreadPoolExecutor(min(workers, MOST_LANES), thread_name_prefix="lane")
        self._decoding = 0
        self._held_at: float | None = None
        self._door = Door(limits.max_queue, clock)
        self._throughput = Throughput(clock)
        # The door below counts decoding images too. The batcher's own limit lies higher, so that an image whose tensor
        # must be made anew after a flip never finds it shut.
        self._batcher: Batcher[Job | Encoded, Seen | None, Lease] = Batcher(
            self._lease,
            self._detecting.run,
            self._lanes,
            max_queue=2 * limits.max_queue + MOST_LANES,
            clock=clock,
            started=self._batch_started,
            finished=self._batch_finished,
        )
        self._watch = Watch(clock)
        self._trial = Trial(self._slots, self._detecting.run, self._spare_lane, self._batcher.lane_freed)
        lane_freed = self._batcher.lane_freed
        self._pace = Pace(self._slots, self._detecting.run, self._spare_lane, lane_freed, background, clock=clock)

    def _check_open(self) -> None:
        self._batcher.check_open()

    async def __aenter__(self) -> Self:
        """Start; nothing is loaded yet."""
        # Images are resized side by side on the decoder threads; threads inside each would oversubscribe the cores.
        cv2.setNumThreads(1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def detect(self, data: bytes, options: DetectOptions, context: RequestContext) -> Answer:
        """Answer one image.

        Raises InvalidImageError and its kin, InvalidOptionError, OverloadedError, DeadlineExceededError,
        UnavailableError or BackendError. Cancelling takes the image out of the queue.
        """
        try:
            answer = await self._detect(data, options, context.deadline, context.client_id)
        except asyncio.CancelledError:
            self._observer.refused("cancelled")
            raise
        except SteelyardError as error:
            self._observer.refused(error.code)
            raise
        self._observer.answered(answer)
        self._count(data, options, answer)
        return answer

    async def _detect(
        self, data: bytes, options: DetectOptions, deadline: float, client_id: str | None = None
    ) -> Answer:
        self._check_door(options, deadline)
        arrived = self._clock()
        spent_s = 0.0
        job: Job | None = None
        # Each further round follows a flip or a trial's next step, and the deadline ends them all.
        while True:
            candidate = self._trial.route(client_id)
            digest = "" if candidate is None else candidate.digest
            image: Job | Encoded
            if self._decoded_by_lanes():
                image, group = Encoded(data, options, deadline), _Group(digest, None)
            else:
                contract = (candidate or self._serving()).contract
                if job is None or job.geometry != geometry_of(contract):
                    job = await self._decode(data, options, contract, deadline)
                    spent_s += job.decode.ended - job.decode.begun
                    if self._trial.route(client_id) is not candidate:
                        continue
                image, group = job, _Group(digest, (job.geometry, job.tensor.shape[:2]))
            try:
                seen = await self._submit(image, group, deadline)
            except BackendError:
                if candidate is None:
                    raise
                # No request fails because of a trial: what the candidate cannot answer, the serving release does.
                client_id = None
                continue
            if seen is not None:
                break
            # A flip to a release of other geometry came between, or a trial's step: another may have to answer.
        decode, batch = seen.decode, seen.batch
        wait = (arrived, decode.begun) if isinstance(image, Encoded) else (decode.ended, batch.begun)
        decode_s = spent_s or decode.ended - decode.begun
        queue_s = self._clock() - arrived - decode_s - seen.infer_s - seen.post_s
        return Answer(
            detections=seen.detections,
            shape=seen.original,
            timings=Timings(1e3 * decode_s, 1e3 * max(queue_s, 0.0), 1e3 * seen.infer_s, 1e3 * seen.post_s),
            release=seen.release.ident,
            generation=seen.generation,
            backend=self._backend.name,
            names=seen.release.contract.names,
            thresholds=seen.thresholds,
            course=Course(decode, Span(*wait), seen.post, batch),
        )

    async def _submit(self, image: Job | Encoded, group: _Group, deadline: float) -> Seen | None:
        try:
            seen, _ = await self._batcher.submit(image, group, deadline)
        except BackendError:
            self._count_failure(image)
            raise
        except DeadlineExceededError:
            if image.begun is not None and self._clock() - image.begun.at >= OVERRUN_S:
                self._count_failure(image)
            raise
        return seen

    def _count(self, data: bytes, options: DetectOptions, answer: Answer) -> None:
        resident = self._slots.find(answer.release.digest)
        if resident is not None:
            seconds = (answer.timings.infer_ms + answer.timings.post_ms) / 1e3
            defaults = resident.release.thresholds
            if options.classes is None and answer.thresholds == defaults:
                self._observer.looked(answer)
            self._watch.answered(answer.generation, seconds, answer.detections, options, defaults)
            self._trial.answered(data, options, answer, seconds)

    def _count_failure(self, image: Job | Encoded) -> None:
        if image.begun is not None:
            self._watch.failed(image.begun.digest)
            self._trial.failed(image.begun.digest)

    def _lease(self, group: Hashable) -> Lease | None:
        if isinstance(group, _Group) and group.digest:
            return self._trial.lease(group.digest)
        return self._slots.lease()

    def _spare_lane(self, lease: Lease) -> Lane | None:
        return None if self._decoding else self._batcher.spare_lane(lease.plan)

    def _check_door(self, options: DetectOptions, deadline: float) -> None:
        self._batcher.check_open()
        names = self._serving().contract.names
        if options.classes and max(options.classes) >= len(names):
            msg = f"classes holds {max(options.classes)}, this model has the ids 0 to {len(names) - 1}; send those"
            raise InvalidOptionError(msg)
        active = self._slots.active
        workers = 1 if active is None else active.session.plan.workers
        self._door.check(self.queued, self._batcher.running, deadline, workers)

    def _decoded_by_lanes(self) -> bool:
        active = self._slots.active
        return active is not None and active.session.plan.decodes

    async def _decode(self, data: bytes, options: DetectOptions, contract: Contract, deadline: float) -> Job:
        self._batcher.check_open()
        remaining = deadline - self._clock()
        self._decoding += 1
        try:
            async with asyncio.timeout(max(remaining, 0.0)):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(
                    self._decoders, self._detecting.make_job, data, options, contract, deadline
                )
        except TimeoutError:
            raise late() from None
        finally:
            self._decoding -= 1

    async def prepare(self, release: Release) -> None:
        """Load, warm and test ``release`` on a worker thread and make it the candidate.

        Nothing is done when its content is resident already. Raises ReleaseRejectedError, ReleaseFaultError, or
        UnavailableError while closing. Cancelling frees what was loaded.
        """
        await self._residents.prepare(release)

    async def golden_ms(self, digest: str) -> tuple[float, float] | None:
        """Return the least time of a golden image in the release of ``digest`` and in the serving one (milliseconds).

        Measured in turns while there is time to spare, for about a quarter of a second, and for up to two where the
        release of ``digest`` looks slower; None where there was no time, or nothing to compare with.
        """
        return await self._pace.compare(digest)

    def has(self, version: str, digest: str) -> bool:
        """Return whether the release of ``digest`` is loaded under ``version``: preparing it would do nothing."""
        resident = self._slots.find(digest)
        return resident is not None and (resident.renamed or resident.release).version == version

    def hold(self) -> None:
        """Start no further batch until ``resume``."""
        if self._held_at is None and self._slots.active is not None:
            self._held_at = self._clock()
        self._batcher.hold()

    def resume(self) -> None:
        """Start batches again."""
        self._batcher.resume()
        if self._held_at is not None:
            self._observer.held(self._clock() - self._held_at)
            self._held_at = None

    def flip(self, digest: str, generation: int) -> None:
        """Let the resident release of ``digest`` serve under ``generation``, in one step.

        Raises ReleaseFaultError (step ``commit``) when it is not resident.
        """
        release = self._residents.flip(digest, generation)
        # Only now: whoever was answered by the candidate must not meet the old release once more.
        self._trial.end()
        self._watch.flipped(digest, generation)
        self._observer.flipped(release.ident, generation)

    def discard(self, digest: str) -> None:
        """Drop the candidate of that digest, if it is one, and end its trial."""
        self._trial.end(digest)
        self._slots.discard(digest)

    def begin_trial(self, digest: str, generation: int, *, canary: float, shadow: float) -> None:
        """Begin a trial step of the resident release of ``digest``, or its next one, with new evidence.

        From now on it answers the clients whose place is below ``canary`` (0 to 1), under ``generation``, whether their
        images are new or wait already, and looks unseen at the share ``shadow`` (0 to 1) of the other images. The trial
        lasts until ``end_trial``, ``discard`` or a flip. Between two steps, and before a flip, it must not be ended:
        its clients would go back.
        Raises ReleaseFaultError or ReleaseRejectedError (step ``shadow`` or ``canary``).
        """
        self._trial.begin(digest, generation, canary, shadow)
        # What waits was routed before this step, and its client may meet the candidate elsewhere already.
        self._batcher.end_waiting(None)

    def end_trial(self) -> None:
        """Let the serving release answer every client again and forget the step's evidence. Idempotent."""
        self._trial.end()

    def evidence(self) -> Evidence:
        """Return what the trial step under way has shown so far; it only grows until the next step begins."""
        return self._trial.evidence()

    def watch(self) -> Evidence:
        """Return what the serving release has shown on live images since its flip."""
        return self._watch.evidence()

    def watch_before(self) -> Evidence:
        """Return what the release before the last flip had shown in its last hour; fixed until the next flip."""
        return self._watch.evidence_before()

    def fail_all(self, message: str | None) -> None:
        """Refuse queued and new images with UnavailableError(message) until called with None."""
        self._batcher.fail_all(message)

    async def check_sight(self) -> None:
        """Prove on a golden image that the serving release still sees; without one, that it still answers.

        Raises BackendError when it does not, CapacityError when the image could not be tried.
        """
        await check_canary(self._serving(), self._look)

    async def _look(self, data: bytes) -> Detections:
        answer = await self._detect(data, DetectOptions(), self._clock() + CANARY_TIMEOUT_S)
        return answer.detections

    async def close(self) -> None:
        """End every request, wait a bounded time for running batches, free all releases. Idempotent."""
        await self._trial.close(CLOSE_GRACE_S)
        await self._batcher.close(CLOSE_GRACE_S)
        self._decoders.shutdown(wait=False)
        self._lanes.shutdown(wait=False)
        await self._residents.close()

    @property
    def serving(self) -> Release | None:
        """Return the active release."""
        return None if self._slots.active is None else self._slots.active.release

    @property
    def previous(self) -> Release | None:
        """Return the release that served before; a rollback to it is a flip."""
        return None if self._slots.previous is None else self._slots.previous.release

    @property
    def candidate(self) -> Release | None:
        """Return the prepared release that has not served yet."""
        return None if self._slots.candidate is None else self._slots.candidate.release

    @property
    def generation(self) -> int:
        """Return the generation of the last flip, 0 before the first."""
        return self._slots.generation

    @property
    def held(self) -> bool:
        """Return whether batches are kept from starting."""
        return self._batcher.held

    @property
    def queued(self) -> int:
        """Return how many images wait, those being decoded included."""
        return self._decoding + self._batcher.queued

    @property
    def running(self) -> int:
        """Return how many batches run."""
        return self._batcher.running

    @property
    def lanes(self) -> int:
        """Return how many batches the serving release may run at once, 0 without one."""
        active = self._slots.active
        return 0 if active is None else active.session.plan.workers

    @property
    def leases(self) -> int:
        """Return how many leases of the resident releases are held; 0 at rest."""
        return self._slots.leases

    @property
    def inside(self) -> int:
        """Return how many images wait, are decoded or run."""
        return self.queued + sum(1 for _ in self._batcher.running_jobs())

    @property
    def images_a_second(self) -> float:
        """Return how many images a second can be answered, as the batches so far tell; 0 while too few have run."""
        return self._throughput.images_a_second()

    @property
    def image_s(self) -> float:
        """Return the average seconds that a batch takes, 0 before the first."""
        return self._throughput.batch_s

    @property
    def backend_name(self) -> str:
        """Return the runtime's name."""
        return self._backend.name

    def _serving(self) -> Release:
        if self._slots.active is None:
            msg = "no version of the model is ready yet; send the image again in a moment"
            raise UnavailableError(msg)
        return self._slots.active.release

    def _batch_started(self, lease: Lease, size: int, queued: int) -> None:
        self._observer.batch_started(lease.release.ident, size, queued)

    def _batch_finished(
        self, lease: Lease, jobs: Sequence[Job | Encoded], lane: Lane, seconds: float, error: BaseException | None
    ) -> None:
        self._observer.batch_finished(lease.release.ident, len(jobs), seconds, error)
        if error is None:
            self._door.finished(len(jobs), seconds)
            beside, workers = self._batcher.running, lease.plan.workers
            self._throughput.finished(len(jobs), seconds, alone=lane.alone, beside=beside, workers=workers)
            shape = _shape(jobs[0])
            if shape is not None:
                # Every lane that runs this shape now would have needed a copy of its own.
                beside = 0 if lane.alone else sum(_shape(each) == shape for each in self._batcher.running_jobs())
                for copy in range(beside + 1):
                    self._residents.warm_if_earned(Form(lease.session, shape, lane.alone, copy), len(jobs))
        self._trial.pump()


def _shape(image: Job | Encoded) -> tuple[int, int] | None:
    if isinstance(image, Encoded):
        return image.shape
    return image.tensor.shape[0], image.tensor.shape[1]
