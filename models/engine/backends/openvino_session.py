"""One release in OpenVINO: a form for every size, and forms of their own for the sizes that come often.

A form of its own is a compiled network of one stream, which runs on the thread that calls it: with several streams it
would run on threads of its own, and those of twenty networks wake up on each other's cores. So lanes that run one size
side by side need a copy each. One more form, on all threads, is for an image that is alone.

Every form must answer a probe exactly as the general form does before it may serve, so which form ran never shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.engine.backends.openvino_network import Variant
from models.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from models.engine.backends.backend import Ahead, Plan, Shape
    from models.engine.backends.openvino_network import Network

logger = logging.getLogger(__name__)

FORM_BYTES = 21 * 1024**2
"""Graph, kernels and fragments of the heap in a compiled form of YOLO26n; 31 MiB resident in all at 640 x 480."""
PACKED = 0.6
"""Bytes of weights packed for the kernels, for each byte of the network's file (bf16 halves it)."""
OWN = 1.0
"""The same for weights that a network holds that was read from disk, where networks compiled here share them: YOLO26n
takes 38 MiB a form then, 29 otherwise."""
WORKSPACE_BYTES = 16
"""Bytes of activations a tensor pixel: 5 MB at 640 x 480."""
STREAM_DEADLINE_S = 60.0
"""Longest wait for a stream; calls take milliseconds, so a longer one means that the runtime hangs."""


class _Key(NamedTuple):
    shape: Shape
    alone: bool
    copy: int


@dataclass(slots=True, eq=False)
class _Network:
    """A form of one size. kept: whether it may serve again once its call returns."""

    request: Any
    alone: bool
    kept: bool = True


class OpenVinoSession:
    """Fulfils Session."""

    def __init__(self, network: Network, plan: Plan, *, threads: int, weights: int) -> None:
        """Compile ``network`` for every size.

        Args:
            network: uint8 NHWC in, one output.
            plan: how many lanes.
            threads: of all lanes together, >= 1.
            weights: bytes of the network's file.

        Raises what ``Network.request`` does.

        """
        self.plan = plan
        self._network: Network | None = network
        self._threads = threads
        self._weights = weights
        self._lock = threading.Lock()
        self._streams = plan.workers
        general = Variant(None, _share(plan, threads))
        with ThreadPoolExecutor(self._streams, thread_name_prefix="compile") as pool:
            self._general: list[Any] = list(pool.map(lambda _: self._compile(general), range(self._streams)))
        self._held = PACKED + (OWN if network.was_read else 0.0)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for stream in range(self._streams):
            self._free.put(stream)
        self._forms: dict[_Key, _Network] = {}
        self._idle: dict[tuple[Shape, bool], list[_Network]] = {}

    def infer(self, batch: NDArray[np.uint8], lane: int, *, alone: bool = False) -> NDArray[np.float32]:  # noqa: ARG002
        """Run the images one by one, on the next free stream or on all threads; ``lane`` does not matter."""
        shape = (batch.shape[1], batch.shape[2])
        try:
            with self._stream() as stream:
                taken = self._take(shape, alone=alone)
                request = self._general[stream] if taken is None else taken.request
                try:
                    outputs = [_run(request, batch[index : index + 1]) for index in range(len(batch))]
                finally:
                    self._put_back(shape, taken)
        except IndexError:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg) from None
        except RuntimeError as error:
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Compile a form of ``shape`` for one lane more, or one on all threads; keep it if it agrees."""
        key = _Key(shape, alone, copy)
        if copy >= (1 if alone else self._streams):
            return False
        with self._lock:
            if not self._general:
                return False
            if key in self._forms:
                return True
        try:
            request = self._agreeing(_variant(self.plan, self._threads, shape, alone=alone), shape)
            if request is None:
                return False
        except RuntimeError as error:
            msg = f"the network cannot be compiled for tensors of {shape[0]} x {shape[1]}; it still runs, slower"
            raise BackendError(msg) from error
        with self._lock:
            if self._general:
                network = self._forms[key] = _Network(request, alone)
                self._idle.setdefault((shape, alone), []).append(network)
        return True

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Drop a form; a call that runs on it keeps it alive until it returns."""
        with self._lock:
            network = self._forms.pop(_Key(shape, alone, copy), None)
            if network is not None:
                network.kept = False
                idle = self._idle[shape, alone]
                if network in idle:
                    idle.remove(network)

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:  # noqa: ARG002 - all take as much
        """Return about 32 MB for YOLO26n at 640 x 480, 42 where its networks were read."""
        return FORM_BYTES + int(self._held * self._weights) + WORKSPACE_BYTES * shape[0] * shape[1]

    def distrust(self) -> bool:
        """Have what was compiled before compiled anew."""
        with self._lock:
            network = self._network
        return network is not None and network.distrust()

    def close(self) -> None:
        """Drop every form."""
        with self._lock:
            self._forms.clear()
            self._idle.clear()
            self._general = []
            self._network = None
        _give_back()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[int]:
        try:
            stream = self._free.get(timeout=STREAM_DEADLINE_S)
        except queue.Empty:
            msg = "the detector does not answer; send the image to another replica"
            raise BackendError(msg) from None
        try:
            yield stream
        finally:
            self._free.put(stream)

    def _take(self, shape: Shape, *, alone: bool) -> _Network | None:
        """Return an idle form of ``shape``, the kind that was asked for before the other; None where there is none."""
        with self._lock:
            for kind in (alone, not alone):
                idle = self._idle.get((shape, kind))
                if idle:
                    return idle.pop()
        return None

    def _put_back(self, shape: Shape, network: _Network | None) -> None:
        if network is not None:
            with self._lock:
                if network.kept:
                    self._idle.setdefault((shape, network.alone), []).append(network)

    def _agreeing(self, variant: Variant, shape: Shape) -> Any:
        """Return a request that answers as the general form does, None where there is none."""
        request = self._compile(variant)
        if self._agrees(request, shape):
            return request
        network = self._network
        if network is None or not network.forget(variant):
            return None
        # The file was wrong: another would be no better than what is compiled here.
        request = self._compile(variant)
        return request if self._agrees(request, shape) else None

    def _agrees(self, request: Any, shape: Shape) -> bool:
        """Return whether a form answers a picture of noise exactly as the general form does."""
        probe = _probe(shape)
        general = self._core_request()
        if np.array_equal(_run(request, probe), _run(general, probe)):
            return True
        logger.warning(
            "the form of %d x %d pixels answers otherwise than the general one and is not used", shape[0], shape[1]
        )
        return False

    def _core_request(self) -> Any:
        # A request of its own: those of the lanes may be busy.
        with self._lock:
            self._check_open()
            general = self._general[0]
        return general.get_compiled_model().create_infer_request()

    def _compile(self, variant: Variant) -> Any:
        with self._lock:
            network = self._network
        if network is None:
            msg = "a closed session was warmed. This is a bug."
            raise BackendError(msg)
        return network.request(variant)

    def _check_open(self) -> None:
        if not self._general:
            msg = "a closed session was warmed. This is a bug."
            raise BackendError(msg)


def variants_of(plan: Plan, threads: int, ahead: Iterable[Ahead]) -> list[Variant]:
    """Return what a session driven by ``plan`` compiles at once, and for the forms of ``ahead``, each once."""
    forms = (_variant(plan, threads, each.shape, alone=each.alone) for each in ahead)
    return list(dict.fromkeys((Variant(None, _share(plan, threads)), *forms)))


def _variant(plan: Plan, threads: int, shape: Shape, *, alone: bool) -> Variant:
    return Variant(shape, threads if alone else _share(plan, threads))


def _share(plan: Plan, threads: int) -> int:
    """Return the threads of one stream."""
    return max(threads // plan.workers, 1)


def _give_back() -> None:
    """Hand freed memory back to the system: glibc keeps what compiling took, hundreds of megabytes after some swaps."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _run(request: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    # A request is only ever given pixels to share: one that copies them would write to where it last found some, which
    # their owner has freed since.
    results = request.infer([image], share_inputs=True, share_outputs=True)
    return np.array(next(iter(results.values())), np.float32)


def _probe(shape: Shape) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, *shape, 3), np.uint8)
