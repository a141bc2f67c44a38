"""The engine: the request path of one model, and the releases it moves through.

detect:  see ``request_path.py``
weights: prepare (worker) -> candidate -> [trial] -> hold -> flip -> resume; the old one stays as ``previous``
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import cv2

from models.engine.canary import check_canary
from models.engine.decode import MIB
from models.engine.engine_settings import EngineSettings
from models.engine.forms import FormCache
from models.engine.observe import NullObserver
from models.engine.prepare import Preparer
from models.engine.processors import Processors
from models.engine.request_path import RequestPath
from models.engine.residents import Residents
from models.types import DetectOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from models.engine.backends.backend import Backend
    from models.engine.decode_budget import DecodeBudget
    from models.engine.observe import Observer
    from models.engine.prepare import SightTest
    from models.evidence import Evidence
    from models.types import Answer, Detections, Release, RequestContext

__all__ = ["Engine", "EngineSettings"]

CANARY_TIMEOUT_S = 10.0


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
        limits = settings or EngineSettings()
        self._backend = backend
        self._observer: Observer = observer or NullObserver()
        self._clock = clock
        self._held_at: float | None = None
        forms = FormCache(limits.memory_budget_mb * MIB)
        processors = Processors(limits.processors)
        preparer = Preparer(backend, forms, sight_test, limits.lanes, limits.max_batch, clock, processors)
        self._residents = Residents(preparer, self._observer, clock)
        self._slots = self._residents.slots
        self._path = path = RequestPath(
            backend,
            limits,
            self._residents,
            observer=self._observer,
            budget=budget,
            processors=processors,
            clock=clock,
        )
        self._batcher, self._trial, self._watch = path.batcher, path.trial, path.watch

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
        return await self._path.detect(data, options, context)

    async def prepare(self, release: Release) -> None:
        """Load, warm and test ``release`` on a worker thread and make it the candidate.

        Nothing is done when its content is resident already. Raises ReleaseRejectedError, ReleaseFaultError, or
        UnavailableError while closing. Cancelling frees what was loaded.
        """
        await self._residents.prepare(release)

    async def golden_ms(self, digest: str) -> tuple[float, float] | None:
        """Return the least time of a golden image in the release of ``digest`` and in the serving one (milliseconds).

        Measured in turns for about an eighth of a second, and for up to one where the release of ``digest`` looks
        slower than ``EngineSettings.doubt`` allows; waiting for time to spare comes on top. None where there was no
        time, or nothing to compare with.
        """
        return await self._path.pace.compare(digest)

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
        await check_canary(self._path.serving(), self._look)

    async def _look(self, data: bytes) -> Detections:
        answer = await self._path.answer(data, DetectOptions(), self._clock() + CANARY_TIMEOUT_S)
        return answer.detections

    async def close(self) -> None:
        """End every request, wait a bounded time for running batches, free all releases. Idempotent."""
        await self._path.close()
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
        return self._path.queued

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
        return self._path.inside

    @property
    def images_a_second(self) -> float:
        """Return how many images a second can be answered, as the batches so far tell; 0 while too few have run."""
        return self._path.throughput.images_a_second()

    @property
    def image_s(self) -> float:
        """Return the average seconds that a batch takes, 0 before the first."""
        return self._path.throughput.batch_s

    @property
    def backend_name(self) -> str:
        """Return the runtime's name."""
        return self._backend.name
