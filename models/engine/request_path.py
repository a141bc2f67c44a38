"""The request path of one model, from an image's bytes to its answer.

decode + letterbox (pool) -> queue -> batch, infer, postprocess (lane) -> Answer
queue -> decode + letterbox, infer, postprocess (lane) -> Answer, where lanes decode
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from models.engine.admission import Door
from models.engine.batch import Batcher, late
from models.engine.decode import MAX_MEMORY, MIB, DecodeLimits
from models.engine.decode_budget import DecodeBudget
from models.engine.detect import Detecting, Encoded, geometry_of
from models.engine.forms import Form
from models.engine.pace import Pace
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
from models.types import Answer, Course, Span, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from models.engine.backends.backend import Backend
    from models.engine.batch import Lane
    from models.engine.detect import Job, Seen
    from models.engine.engine_settings import EngineSettings
    from models.engine.observe import Observer
    from models.engine.processors import Processors
    from models.engine.residents import Residents
    from models.engine.slots import Lease
    from models.types import Contract, DetectOptions, Release, RequestContext

MOST_LANES = 64
CLOSE_GRACE_S = 10.0
"""Longest time that running batches may take when the path closes."""
OVERRUN_S = 2.0
"""Seconds on a lane after which an image whose time runs out there counts as failed by the release, not by the load."""


class _Group(NamedTuple):
    """Images that may share a batch: digest of the candidate that they are for, "" for what serves, and their shape."""

    digest: str
    shape: Hashable


class RequestPath:
    """Answers images with what ``residents`` holds. Everything but the constructor belongs to one event loop.

    batcher, trial, watch, pace and throughput are its steps and what they tell.
    """

    def __init__(
        self,
        backend: Backend,
        settings: EngineSettings,
        residents: Residents,
        *,
        observer: Observer,
        budget: DecodeBudget | None,
        processors: Processors,
        clock: Callable[[], float],
    ) -> None:
        """Start nothing; for the arguments see ``Engine``.

        residents: moved through their slots by somebody else. processors: those that lanes may take.
        """
        self._settings, self._backend, self._residents = settings, backend, residents
        self._slots, self._observer, self._clock = residents.slots, observer, clock
        most = max(settings.decode_budget_mb * MIB, MAX_MEMORY)
        within = DecodeLimits(settings.max_bytes, settings.max_pixels, settings.max_side, most)
        budget = budget or DecodeBudget(settings.decode_budget_mb * MIB, clock)
        self._detecting = Detecting(within, budget, self._check_open, clock)
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        workers = max(replace(plan, lanes=settings.lanes or plan.lanes).workers for plan in backend.plans())
        self._lanes = ThreadPoolExecutor(min(workers, MOST_LANES), thread_name_prefix="lane")
        self._processors = processors
        self._decoding = 0
        self._door = Door(settings.max_queue, clock)
        self.throughput = Throughput(clock)
        # The door below counts decoding images too. The batcher's own limit lies higher, so that an image whose tensor
        # must be made anew after a flip never finds it shut.
        self.batcher: Batcher[Job | Encoded, Seen | None, Lease] = Batcher(
            self._lease,
            self._run,
            self._lanes,
            max_queue=2 * settings.max_queue + MOST_LANES,
            clock=clock,
            started=self._batch_started,
            finished=self._batch_finished,
        )
        self.watch = Watch(clock)
        run, freed = self._detecting.run, self.batcher.lane_freed
        self.trial = Trial(self._slots, run, self._spare_lane, freed)
        self.pace = Pace(self._slots, run, self._spare_lane, freed, doubt=settings.doubt, clock=clock)

    def _run(self, lease: Lease, jobs: Sequence[Job | Encoded], lane: Lane) -> Sequence[Seen | Exception | None]:
        if lane.alone or not lease.plan.confined:
            return self._detecting.run(lease, jobs, lane)
        with self._processors.own():
            return self._detecting.run(lease, jobs, lane)

    def _check_open(self) -> None:
        self.batcher.check_open()

    @property
    def queued(self) -> int:
        """Return how many images wait, those being decoded included."""
        return self._decoding + self.batcher.queued

    @property
    def inside(self) -> int:
        """Return how many images wait, are decoded or run."""
        return self.queued + sum(1 for _ in self.batcher.running_jobs())

    def serving(self) -> Release:
        """Return the active release. Raises UnavailableError without one."""
        if self._slots.active is None:
            msg = "no version of the model is ready yet; send the image again in a moment"
            raise UnavailableError(msg)
        return self._slots.active.release

    async def detect(self, data: bytes, options: DetectOptions, context: RequestContext) -> Answer:
        """Answer one image.

        Raises InvalidImageError and its kin, InvalidOptionError, OverloadedError, DeadlineExceededError,
        UnavailableError or BackendError. Cancelling takes the image out of the queue.
        """
        try:
            answer = await self.answer(data, options, context.deadline, context.client_id)
        except asyncio.CancelledError:
            self._observer.refused("cancelled")
            raise
        except SteelyardError as error:
            self._observer.refused(error.code)
            raise
        self._observer.answered(answer)
        self._count(data, options, answer)
        return answer

    async def answer(
        self, data: bytes, options: DetectOptions, deadline: float, client_id: str | None = None
    ) -> Answer:
        """Answer one image as ``detect`` does, and tell nobody."""
        self._check_door(options, deadline)
        arrived = self._clock()
        spent_s = 0.0
        job: Job | None = None
        # Each further round follows a flip or a trial's next step, and the deadline ends them all.
        while True:
            candidate = self.trial.route(client_id)
            digest = "" if candidate is None else candidate.digest
            image: Job | Encoded
            if self._decoded_by_lanes():
                image, group = Encoded(data, options, deadline), _Group(digest, None)
            else:
                contract = (candidate or self.serving()).contract
                if job is None or job.geometry != geometry_of(contract):
                    job = await self._decode(data, options, contract, deadline)
                    spent_s += job.decode.ended - job.decode.begun
                    if self.trial.route(client_id) is not candidate:
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
            seen, _ = await self.batcher.submit(image, group, deadline)
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
            self.watch.answered(answer.generation, seconds, answer.detections, options, defaults)
            self.trial.answered(data, options, answer, seconds)

    def _count_failure(self, image: Job | Encoded) -> None:
        if image.begun is not None:
            self.watch.failed(image.begun.digest)
            self.trial.failed(image.begun.digest)

    def _lease(self, group: Hashable) -> Lease | None:
        if isinstance(group, _Group) and group.digest:
            return self.trial.lease(group.digest)
        return self._slots.lease()

    def _spare_lane(self, lease: Lease) -> Lane | None:
        return None if self._decoding else self.batcher.spare_lane(lease.plan)

    def _check_door(self, options: DetectOptions, deadline: float) -> None:
        self.batcher.check_open()
        names = self.serving().contract.names
        if options.classes and max(options.classes) >= len(names):
            msg = f"classes holds {max(options.classes)}, this model has the ids 0 to {len(names) - 1}; send those"
            raise InvalidOptionError(msg)
        active = self._slots.active
        workers = 1 if active is None else active.session.plan.workers
        self._door.check(self.queued, self.batcher.running, deadline, workers)

    def _decoded_by_lanes(self) -> bool:
        active = self._slots.active
        return active is not None and active.session.plan.decodes

    async def _decode(self, data: bytes, options: DetectOptions, contract: Contract, deadline: float) -> Job:
        self.batcher.check_open()
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

    async def close(self) -> None:
        """End every request and wait a bounded time for running batches. Idempotent."""
        await self.trial.close(CLOSE_GRACE_S)
        await self.batcher.close(CLOSE_GRACE_S)
        self._decoders.shutdown(wait=False)
        self._lanes.shutdown(wait=False)

    def _batch_started(self, lease: Lease, size: int, queued: int) -> None:
        self._observer.batch_started(lease.release.ident, size, queued)

    def _batch_finished(
        self, lease: Lease, jobs: Sequence[Job | Encoded], lane: Lane, seconds: float, error: BaseException | None
    ) -> None:
        self._observer.batch_finished(lease.release.ident, len(jobs), seconds, error)
        if error is None:
            self._door.finished(len(jobs), seconds)
            beside, workers = self.batcher.running, lease.plan.workers
            self.throughput.finished(len(jobs), seconds, alone=lane.alone, beside=beside, workers=workers)
            shape = _shape(jobs[0])
            if shape is not None:
                # Every lane that runs this shape now would have needed a copy of its own.
                beside = 0 if lane.alone else sum(_shape(each) == shape for each in self.batcher.running_jobs())
                for copy in range(beside + 1):
                    self._residents.warm_if_earned(Form(lease.session, shape, lane.alone, copy), len(jobs))
        self.trial.pump()


def _shape(image: Job | Encoded) -> tuple[int, int] | None:
    if isinstance(image, Encoded):
        return image.shape
    return image.tensor.shape[0], image.tensor.shape[1]
