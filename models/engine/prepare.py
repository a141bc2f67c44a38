"""Prepare a release on a worker thread: load, choose the plan, warm, look at the golden images."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models.engine.backends.backend import Ahead, Beside
from models.engine.decode import DecodeLimits, decode
from models.engine.forms import Form
from models.engine.postprocess import postprocess
from models.engine.preprocess import PAD_VALUE, letterbox
from models.engine.priority import LOAD_NICENESS, give_way
from models.engine.processors import Processors
from models.engine.warm import common_shapes, load_fastest
from models.errors import BackendError, InvalidImageError, ReleaseFaultError, ReleaseRejectedError, SteelyardError
from models.types import Thresholds

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from models.engine.backends.backend import Backend, Plan, Session, Shape
    from models.engine.forms import FormCache
    from models.types import Contract, Detections, Release

logger = logging.getLogger(__name__)

SIGHT_CONF = 0.05
MEASURE_BUDGET_S = 3.0
WARM_BUDGET_S = 0.5
"""No further shape is warmed after this time when nothing serves yet; the rest follow when images of them arrive."""
WARM_BESIDE_S = 45.0
"""The same while another release serves: nobody waits then, and after the flip nobody should. On a machine that is busy
throughout, that is little more than a second of processor time at ``LOAD_NICENESS``."""

NETWORK = "model.onnx"
WEIGHT_COPIES = 4
RUNTIME_BYTES = 168 * 1024**2
"""Together what a loaded release takes: the copies of its network's file, and activations and kernels on top.

Measured as growth of the resident set on OpenVINO in bf16 with two streams: YOLO26n (10 MiB) 60 MiB when loaded, and
another 80 to 165 MiB once images of 20 shapes have run through the form for every size, whose kernels are kept. With
40 MiB less, a replica that saw 20 shapes and two swaps under load took 1559 MiB of a budget of 1500.
"""


class SightTest(Protocol):
    """Demands that a release sees; raises ReleaseRejectedError. Runs on a worker thread."""

    def __call__(self, release: Release, detect: Callable[[bytes], Detections], serving: Release | None, /) -> object:
        """Try ``release``, which ``detect`` runs on encoded bytes, also against what ``serving`` must see."""
        ...


class AbandonedError(Exception):
    """Nobody waits for this preparation any more; what it had loaded is freed."""


class _DoubtError(Exception):
    """A release failed, but on what was compiled elsewhere."""


@dataclass(slots=True, eq=False)
class Preparer:
    """Turns releases into sessions that may serve. ``prepare`` runs on one worker thread at a time.

    lanes, max_batch: forced parts of the plan, None lets the first preparation measure; the plan then stays.
    processors: told while a release loads beside one that answers.
    """

    backend: Backend
    forms: FormCache
    sight_test: SightTest | None = None
    lanes: int | None = None
    max_batch: int | None = None
    clock: Callable[[], float] = time.monotonic
    processors: Processors = field(default_factory=lambda: Processors(None))
    _plan: Plan | None = None

    def prepare(
        self,
        release: Release,
        serving: Release | None,
        warm_like: Session | None,
        abandoned: threading.Event,
        resident: Collection[Release] = (),
    ) -> Session:
        """Return a session of ``release`` that is warm and sees.

        Args:
            release: verified by the caller.
            serving: what serves now; handed to the sight test.
            warm_like: its session; the shapes that are warm in it are warmed here too.
            abandoned: set when nobody waits any more.
            resident: what is loaded and stays so; it shares the memory budget with ``release``.

        Raises:
            ReleaseRejectedError: step ``load``, ``warm`` or ``golden``: these bytes may never serve.
            ReleaseFaultError: the same steps: memory, its budget or the runtime failed; try again later.
            AbandonedError: ``abandoned`` was set.

        """
        if serving is None:
            return self._prepare(release, serving, warm_like, abandoned, resident)
        give_way(LOAD_NICENESS)
        with self.processors.loading(abandoned):
            _stop_if(abandoned)
            return self._prepare(release, serving, warm_like, abandoned, resident)

    def _prepare(
        self,
        release: Release,
        serving: Release | None,
        warm_like: Session | None,
        abandoned: threading.Event,
        resident: Collection[Release],
    ) -> Session:
        try:
            return self._try(release, serving, warm_like, abandoned, resident)
        except _DoubtError as doubt:
            logger.warning("what was compiled before is made anew, since with it a version failed: %s", doubt)
        # Nothing is read from disk now, so that there is nothing left to doubt.
        return self._try(release, serving, warm_like, abandoned, resident)

    def _try(
        self,
        release: Release,
        serving: Release | None,
        warm_like: Session | None,
        abandoned: threading.Event,
        resident: Collection[Release],
    ) -> Session:
        """Prepare, or raise _DoubtError where what was found on disk may be what is wrong."""
        with _step("golden"):
            tensors = [letterbox(_decode_golden(image.data), release.contract)[0] for image in release.golden]
        with _step("load"):
            self._check_memory(release, resident)
            beside = None
            if serving is not None:
                beside = Beside(self._ahead(release, tensors, warm_like), abandoned)
            session = self._load(release, beside)
            self.forms.hold(session, estimate(release))
        try:
            with _step("warm"):
                self._warm(session, release, tensors, warm_like, abandoned)
            with _step("golden"):
                if self.sight_test is not None:
                    _stop_if(abandoned)
                    self.sight_test(release, lambda data: self._look(session, release, data, abandoned), serving)
            _stop_if(abandoned)
        except BaseException as error:
            doubted = isinstance(error, ReleaseRejectedError | ReleaseFaultError) and session.distrust()
            self.forms.drop(session)
            session.close()
            if doubted:
                raise _DoubtError(str(error)) from error
            raise
        self._plan = session.plan
        return session

    def _check_memory(self, release: Release, resident: Collection[Release]) -> None:
        """Refuse a release whose estimate does not fit beside the others, else make room. Raises ReleaseFaultError."""
        budget = self.forms.budget
        needed, held = estimate(release), sum(map(estimate, resident))
        if needed + held > budget:
            mib = 1024**2
            msg = (
                f"the version would take about {needed // mib} MiB beside {held // mib} MiB of those loaded, and the "
                f"model's share of the memory budget is {budget // mib} MiB: raise STEELYARD_MEMORY_BUDGET_MB, which "
                "all models of a replica share equally, and start the service again"
            )
            raise ReleaseFaultError(msg, step="load")
        self.forms.make_room(needed)

    def _ahead(
        self, release: Release, tensors: Sequence[NDArray[np.uint8]], warm_like: Session | None
    ) -> tuple[Ahead, ...]:
        """Return what ``_warm`` will warm, as far as that is known by now, the surest first."""
        golden = (Ahead((tensor.shape[0], tensor.shape[1])) for tensor in tensors)
        heirs = () if warm_like is None else self.forms.forms(warm_like)
        likely = [Ahead(form.shape, form.alone) for form in heirs if _fits(form.shape, release.contract)]
        return tuple(dict.fromkeys((*golden, *(likely or map(Ahead, common_shapes(release.contract))))))

    def _load(self, release: Release, beside: Beside | None) -> Session:
        if self._plan is not None:
            return self.backend.load(release, self._plan, beside)
        plans = [
            replace(plan, lanes=self.lanes or plan.lanes, max_batch=self.max_batch or plan.max_batch)
            for plan in self.backend.plans()
        ]
        return load_fastest(self.backend, release, dict.fromkeys(plans), budget_s=MEASURE_BUDGET_S, clock=self.clock)

    def _warm(
        self,
        session: Session,
        release: Release,
        tensors: Sequence[NDArray[np.uint8]],
        warm_like: Session | None,
        abandoned: threading.Event,
    ) -> None:
        contract = release.contract
        wanted: dict[Form, NDArray[np.uint8]] = {}
        if warm_like is None:
            # Measuring the plans has made this one already; here it is put on the books.
            first = common_shapes(contract)[0]
            for copy in range(session.plan.workers):
                wanted[Form(session, first, copy=copy)] = np.full((*first, 3), PAD_VALUE, np.uint8)
        for tensor in tensors:
            wanted[Form(session, (tensor.shape[0], tensor.shape[1]))] = tensor
        inherited = () if warm_like is None else self.forms.inherit(session, warm_like)
        likely = [form for form in inherited if _fits(form.shape, contract)]
        # Something must run, or nobody would notice that the network answers nonsense.
        for form in likely or (Form(session, shape) for shape in common_shapes(contract)):
            wanted.setdefault(form, np.full((*form.shape, 3), PAD_VALUE, np.uint8))
        end = self.clock() + (WARM_BUDGET_S if warm_like is None else WARM_BESIDE_S)
        for number, (form, tensor) in enumerate(wanted.items()):
            _stop_if(abandoned)
            if number and self.clock() > end:
                break
            try:
                self.forms.warm(form)
            except BackendError as error:
                logger.warning("a version is prepared without its form of %d x %d: %s", *form.shape, error)
            if not np.isfinite(session.infer(tensor[None], 0, alone=form.alone)).all():
                msg = "the network answers NaN or infinity: its weights are damaged; promote another version"
                raise ReleaseRejectedError(msg, step="warm")

    def _look(self, session: Session, release: Release, data: bytes, abandoned: threading.Event) -> Detections:
        _stop_if(abandoned)
        tensor, placement = letterbox(_decode_golden(data), release.contract)
        try:
            output = session.infer(tensor[None], 0)[0]
        except BackendError as error:
            # The runtime failed, which says nothing of what the network sees.
            raise ReleaseFaultError(str(error), step="golden") from error
        thresholds = Thresholds(conf=SIGHT_CONF, iou=release.thresholds.iou)
        return postprocess(output, placement, release.contract, thresholds)


def estimate(release: Release) -> int:
    """Return about how many bytes ``release`` takes once loaded, its warm shapes of their own left out."""
    network = release.files.get(NETWORK)
    return 0 if network is None else WEIGHT_COPIES * network.nbytes + RUNTIME_BYTES


def _fits(shape: Shape, contract: Contract) -> bool:
    return all(side % contract.stride == 0 and side <= contract.imgsz for side in shape)


def _decode_golden(data: bytes) -> NDArray[np.uint8]:
    return decode(data, DecodeLimits())


def _stop_if(abandoned: threading.Event) -> None:
    if abandoned.is_set():
        raise AbandonedError


@contextmanager
def _step(step: str) -> Iterator[None]:
    """Name the step in whatever goes wrong inside."""
    try:
        yield
    except (ReleaseRejectedError, ReleaseFaultError, AbandonedError):
        raise
    except InvalidImageError as error:
        msg = f"a golden image of the release cannot be decoded: {error}"
        raise ReleaseRejectedError(msg, step="golden") from error
    except MemoryError as error:
        msg = "there is no memory to prepare the release; free some or lower the number of models"
        raise ReleaseFaultError(msg, step=step) from error
    except SteelyardError as error:
        raise ReleaseFaultError(str(error), step=step) from error
    except Exception as error:
        logger.exception("preparing a release failed at step %s", step)
        msg = "the release could not be prepared for an unforeseen reason, which the log holds; it is tried again"
        raise ReleaseFaultError(msg, step=step) from error
