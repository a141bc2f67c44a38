"""ONNX Runtime: on CPUs where OpenVINO is not, and on NVIDIA GPUs.

On a CPU the images of a call run one after the other, so that an answer cannot depend on its company, to the last bit.
On a GPU they run as one tensor; there the kernels chosen for another batch size may move the last digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.backends.backend import Plan
from models.errors import BackendError, ReleaseFaultError, ReleaseRejectedError, SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.engine.backends.backend import Shape
    from models.types import Release

ONNX = "model.onnx"
INPUT = "images"
MAX_LANES = 16
GPU_BATCH = 32
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
LOG_ERRORS = 3


class OnnxRuntimeBackend:
    """Fulfils Backend."""

    name = "onnxruntime"

    def __init__(self, *, threads: int, gpu: bool = False) -> None:
        """Start the runtime.

        Args:
            threads: CPU threads of all lanes together, >= 1.
            gpu: run on the first NVIDIA GPU that is visible.

        Raises:
            SettingsError: ``gpu`` without a build of the runtime that knows GPUs.

        """
        import onnxruntime  # noqa: PLC0415 - a service loads only the runtime it uses

        self._runtime: Any = onnxruntime
        self._threads = threads
        self._gpu = gpu
        if gpu and CUDA not in onnxruntime.get_available_providers():
            msg = "gpus is set, but the installed runtime knows only CPUs: install steelyard[gpu], or set gpus to 0"
            raise SettingsError(msg)

    def plans(self) -> tuple[Plan, ...]:
        """Return large batches on one or two lanes for a GPU; else one lane a thread, or one lane with all threads."""
        if self._gpu:
            return (Plan(1, GPU_BATCH), Plan(2, GPU_BATCH // 2))
        most = min(self._threads, MAX_LANES)
        return tuple(Plan(lanes, 1) for lanes in sorted({most, 1}, reverse=True))

    def load(self, release: Release, plan: Plan | None = None) -> OnnxRuntimeSession:
        """Load ``release``. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        data = release.files.get(ONNX)
        if data is None:
            msg = "the release holds no network; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = max(self._threads // plan.lanes, 1)
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_ERRORS
        # Spinning threads take the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._runtime.InferenceSession(
                data.tobytes(), options, providers=[CUDA, CPU] if self._gpu else [CPU]
            )
        except MemoryError as error:
            msg = "there is no memory to load the network; free some or lower the number of models"
            raise ReleaseFaultError(msg, step="load") from error
        except Exception as error:  # the runtime's exceptions share no base but this
            msg = "the network cannot be read; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error
        if self._gpu and CUDA not in session.get_providers():
            msg = "the GPU could not be used; check the driver and that CUDA's libraries are installed"
            raise ReleaseFaultError(msg, step="load")
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].name != INPUT or inputs[0].type != "tensor(uint8)":
            msg = "the network does not take uint8 images (n, h, w, 3) or has not one output; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        return OnnxRuntimeSession(session, plan, one_by_one=not self._gpu)


class OnnxRuntimeSession:
    """Fulfils Session; the runtime's session is safe to use from several threads, so lanes share it."""

    def __init__(self, session: Any, plan: Plan, *, one_by_one: bool) -> None:
        """Drive ``session`` by ``plan``."""
        self.plan = plan
        self._session: Any = session
        self._one_by_one = one_by_one

    def infer(self, batch: NDArray[np.uint8], lane: int) -> NDArray[np.float32]:  # noqa: ARG002 - lanes share the session
        """Run the batch."""
        session = self._session
        if session is None:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        try:
            if self._one_by_one and len(batch) > 1:
                return np.concatenate([session.run(None, {INPUT: batch[i : i + 1]})[0] for i in range(len(batch))])
            output: NDArray[np.float32] = session.run(None, {INPUT: batch})[0]
        except Exception as error:  # the runtime's exceptions share no base but this
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error
        return output

    def warm(self, shape: Shape) -> None:
        """Run one blank image, so that the memory of this shape is there and a GPU has chosen its kernels."""
        self.infer(np.zeros((1, *shape, 3), np.uint8), 0)

    def forget(self, shape: Shape) -> None:
        """Keep everything: nothing belongs to one shape."""

    def shape_cost(self, shape: Shape) -> int:  # noqa: ARG002 - nothing belongs to one shape
        """Return 0."""
        return 0

    def close(self) -> None:
        """Drop the session."""
        self._session = None
