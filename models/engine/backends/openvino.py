"""OpenVINO on x86 CPUs: one stream a lane, bf16 where the CPU has it.

Images of a call run one after the other, never as one tensor: on a CPU lanes beat batches, and so an image's answer
cannot depend on its company, to the last bit.

In fp32 a warmed shape gets a static form of its own, which answers as the dynamic one does and is faster. In bf16 it
does not: static and dynamic kernels round differently there (measured with YOLO26n on 164 boxes of COCO: a tenth moved
by more than half a pixel), for 5 to 12 % of speed; one image would get two answers.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.backends.backend import Plan
from models.errors import BackendError, ReleaseFaultError, ReleaseRejectedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.engine.backends.backend import Shape
    from models.types import Release

ONNX = "model.onnx"
NHWC = 4
"""Axes of the input: image, row, column, channel."""
MAX_LANES = 16
WEIGHT_COPIES = 2
"""Copies of the weights that a compiled shape keeps: the given ones and those packed for its kernels."""
ACTIVATION_BYTES = 110
"""Bytes of activations a tensor pixel and lane: 45 MB at 640 x 640, as measured with YOLO26n."""


@functools.cache
def _core() -> Any:
    """Return the process's one runtime, which lives as long as the process.

    OpenVINO 2026.4 gives the thread that loads its CPU plugin an alternate signal stack and takes the memory back with
    the runtime, without telling the thread: the next signal then ends the process.
    """
    import openvino  # noqa: PLC0415 - the runtime takes a second to load, and only the chosen one should

    return openvino.Core()


class OpenVinoBackend:
    """Fulfils Backend."""

    name = "openvino"

    def __init__(self, *, precision: str, threads: int) -> None:
        """Start the runtime.

        Args:
            precision: ``auto`` and ``bf16`` compute in bf16 where the CPU has it; ``fp32`` never does.
            threads: CPU threads of all lanes together, >= 1.

        """
        self._core = _core()
        self._threads = threads
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "f32"

    def plans(self) -> tuple[Plan, ...]:
        """Return one lane a thread, one lane for every two, and one lane with all threads."""
        most = min(self._threads, MAX_LANES)
        return tuple(Plan(lanes, 1) for lanes in sorted({most, max(most // 2, 1), 1}, reverse=True))

    def load(self, release: Release, plan: Plan | None = None) -> OpenVinoSession:
        """Compile ``release`` for every shape. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        data = release.files.get(ONNX)
        if data is None:
            msg = "the release holds no network; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        try:
            model = self._core.read_model(io.BytesIO(data.tobytes()))
        except RuntimeError as error:
            msg = "the network cannot be read; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error
        self._check(model)
        config = {
            "NUM_STREAMS": plan.lanes,
            "INFERENCE_NUM_THREADS": max(self._threads, plan.lanes),
            "INFERENCE_PRECISION_HINT": self.precision,
            # Replicas know nothing of each other: pinned, they would all sit on the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            return OpenVinoSession(self._core, model, config, plan, weights=data.nbytes, static=self.precision == "f32")
        except MemoryError as error:
            msg = "there is no memory to load the network; free some or lower the number of models"
            raise ReleaseFaultError(msg, step="load") from error
        except RuntimeError as error:
            msg = "the network cannot be compiled for this machine; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error

    def _check(self, model: Any) -> None:
        import openvino  # noqa: PLC0415 - see _core

        inputs, outputs = model.inputs, model.outputs
        uint8 = openvino.Type.u8
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or inputs[0].element_type != uint8
            or inputs[0].partial_shape.rank != NHWC
        ):
            msg = "the network does not take uint8 images (n, h, w, 3) or has not one output; register the model again"
            raise ReleaseRejectedError(msg, step="load")


class OpenVinoSession:
    """Fulfils Session."""

    def __init__(
        self, core: Any, model: Any, config: dict[str, object], plan: Plan, *, weights: int, static: bool
    ) -> None:
        """Compile ``model``; ``weights`` is its size in bytes, ``static`` gives warmed shapes forms of their own."""
        self.plan = plan
        self._core = core
        self._model = model
        self._config = config
        self._weights = weights
        self._static = static
        self._compiled: Any = core.compile_model(model, "CPU", config)
        self._dynamic: list[Any] = self._requests(self._compiled)
        self._shapes: dict[Shape, list[Any]] = {}
        self._lock = threading.Lock()

    def infer(self, batch: NDArray[np.uint8], lane: int) -> NDArray[np.float32]:
        """Run the images one by one on the lane's own request."""
        requests = self._shapes.get((batch.shape[1], batch.shape[2]), self._dynamic)
        if not requests:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        request = requests[lane]
        try:
            outputs = [
                np.array(
                    next(iter(request.infer([batch[i : i + 1]], share_inputs=True, share_outputs=True).values())),
                    np.float32,
                )
                for i in range(len(batch))
            ]
        except RuntimeError as error:
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def warm(self, shape: Shape) -> None:
        """Compile a static form of ``shape`` in fp32; in bf16 let every stream build its kernels for it."""
        compiled = self._compiled
        if compiled is None or shape in self._shapes:
            return
        try:
            if self._static:
                model = self._model.clone()
                model.reshape([1, *shape, 3])
                compiled = self._core.compile_model(model, "CPU", self._config)
            requests = self._requests(compiled)
            blank = np.zeros((1, *shape, 3), np.uint8)
            for request in requests:  # all at once, so that each stream gets one
                request.start_async([blank])
            for request in requests:
                request.wait()
        except RuntimeError as error:
            msg = f"the network cannot be compiled for tensors of {shape[0]} x {shape[1]}; it still runs, slower"
            raise BackendError(msg) from error
        if self._static:
            with self._lock:
                if self._dynamic:
                    self._shapes[shape] = requests

    def forget(self, shape: Shape) -> None:
        """Drop the static form; a call that runs on it keeps it alive until it returns."""
        with self._lock:
            self._shapes.pop(shape, None)

    def shape_cost(self, shape: Shape) -> int:
        """Return about 65 MB for YOLO26n at 640 x 640 in fp32, nothing in bf16."""
        if not self._static:
            return 0
        return WEIGHT_COPIES * self._weights + ACTIVATION_BYTES * math.prod(shape) * self.plan.lanes

    def close(self) -> None:
        """Drop every compiled form."""
        with self._lock:
            self._shapes.clear()
            self._dynamic = []
            self._compiled = self._model = None

    def _requests(self, compiled: Any) -> list[Any]:
        return [compiled.create_infer_request() for _ in range(self.plan.lanes)]
