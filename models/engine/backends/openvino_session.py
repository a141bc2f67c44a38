"""One release in OpenVINO: a form for every size, and forms of their own for the sizes that come often.

Each thread that drives a lane has a stream, a compiled network to itself on its share of the threads. One network of
several streams is slower once there are several sizes: every compiled network brings threads, which land on each
other's cores (measured on two cores with 20 sizes: 46 images a second with pinned streams, 54 with free ones, 65 with
a network a stream). A lone image may take a network on all threads.

Every form must answer a probe exactly as the general form does before it may serve, so which form ran never shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from models.engine.backends.backend import Plan, Shape

logger = logging.getLogger(__name__)

WEIGHT_COPIES = 2
"""Copies of the weights that a compiled form keeps: the given ones and those packed for its kernels."""
WORKSPACE_BYTES = 28
"""Bytes of activations and kernels a tensor pixel: 9 MB at 640 x 480, as measured with YOLO26n."""
STREAM_DEADLINE_S = 60.0
"""Longest wait for a stream; calls take milliseconds, so a longer one means that the runtime hangs."""


class OpenVinoSession:
    """Fulfils Session."""

    def __init__(self, core: Any, model: Any, precision: str, plan: Plan, *, threads: int, weights: int) -> None:
        """Compile ``model`` for every size.

        Args:
            core: the runtime.
            model: uint8 NHWC in, one output.
            precision: ``bf16`` or ``f32``.
            plan: how many lanes.
            threads: of all lanes together, >= 1.
            weights: bytes of the network's file.

        Raises RuntimeError or MemoryError.

        """
        self.plan = plan
        self._core = core
        self._model = model
        self._precision = precision
        self._threads = threads
        self._weights = weights
        self._lock = threading.Lock()
        self._streams = plan.workers
        self._general: list[Any] = self._requests(model, streams=self._streams, threads=max(threads, self._streams))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for stream in range(self._streams):
            self._free.put(stream)
        self._lanes: dict[Shape, list[Any]] = {}
        self._alone: dict[Shape, Any] = {}

    def infer(self, batch: NDArray[np.uint8], lane: int, *, alone: bool = False) -> NDArray[np.float32]:  # noqa: ARG002
        """Run the images one by one, on the next free stream or on all threads; ``lane`` does not matter."""
        shape = (batch.shape[1], batch.shape[2])
        try:
            with self._stream() as stream:
                request = self._alone.get(shape) if alone else None
                if request is None:
                    request = self._lanes.get(shape, self._general)[stream]
                outputs = [_run(request, batch[index : index + 1]) for index in range(len(batch))]
        except IndexError:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg) from None
        except RuntimeError as error:
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def warm(self, shape: Shape, *, alone: bool = False) -> bool:
        """Compile forms of ``shape``, one a stream or one on all threads; keep them if they agree."""
        with self._lock:
            if not self._general:
                return False
            if shape in (self._alone if alone else self._lanes):
                return True
        try:
            return self._warm_alone(shape) if alone else self._warm_lanes(shape)
        except RuntimeError as error:
            msg = f"the network cannot be compiled for tensors of {shape[0]} x {shape[1]}; it still runs, slower"
            raise BackendError(msg) from error

    def forget(self, shape: Shape, *, alone: bool = False) -> None:
        """Drop a form; a call that runs on it keeps it alive until it returns."""
        with self._lock:
            if alone:
                self._alone.pop(shape, None)
            else:
                self._lanes.pop(shape, None)

    def shape_cost(self, shape: Shape, *, alone: bool = False) -> int:
        """Return about 30 MB a stream for YOLO26n at 640 x 480."""
        networks = 1 if alone else self._streams
        return networks * (WEIGHT_COPIES * self._weights + WORKSPACE_BYTES * shape[0] * shape[1])

    def close(self) -> None:
        """Drop every form."""
        with self._lock:
            self._lanes.clear()
            self._alone.clear()
            self._general = []
            self._model = None
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

    def _warm_lanes(self, shape: Shape) -> bool:
        model = self._fixed(shape)
        share = max(self._threads // self._streams, 1)
        # Nobody waits for a session before its first form; later ones are made beside requests, which need the cores.
        with ThreadPoolExecutor(1 if self._lanes else self._streams, thread_name_prefix="compile") as pool:
            networks = pool.map(lambda _: self._requests(model, streams=1, threads=share), range(self._streams))
            requests = [network[0] for network in networks]
        if not all(self._agrees(request, shape) for request in requests):
            return False
        with self._lock:
            if self._general:
                self._lanes[shape] = requests
        return True

    def _warm_alone(self, shape: Shape) -> bool:
        request = self._requests(self._fixed(shape), streams=1, threads=self._threads)[0]
        if not self._agrees(request, shape):
            return False
        with self._lock:
            if self._general:
                self._alone[shape] = request
        return True

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
            return self._general[0].get_compiled_model().create_infer_request()

    def _fixed(self, shape: Shape) -> Any:
        with self._lock:
            self._check_open()
            model = self._model.clone()
        model.reshape([1, *shape, 3])
        return model

    def _check_open(self) -> None:
        if not self._general:
            msg = "a closed session was warmed. This is a bug."
            raise BackendError(msg)

    def _requests(self, model: Any, *, streams: int, threads: int) -> list[Any]:
        config = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self._precision,
            # Neither replicas nor forms know of each other: pinned, they would all sit on the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = self._core.compile_model(model, "CPU", config)
        return [compiled.create_infer_request() for _ in range(streams)]


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
