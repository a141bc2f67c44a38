"""ONNX Runtime: on CPUs where OpenVINO is not, and on NVIDIA GPUs.

On a CPU the images of a call run one after the other, so that an answer cannot depend on its company, to the last bit.
On a GPU (``onnxruntime_gpu.py``) they run as one tensor; there the kernels chosen for another batch size may move the
last digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.backends.backend import Plan
from models.engine.backends.onnxruntime_gpu import (
    CPU,
    INPUT,
    TENSORRT,
    GpuLane,
    OnnxRuntimeGpuSession,
    check_used,
    choose,
    load_tensorrt,
    providers,
    require_cuda,
)
from models.engine.backends.torch_queue import GPU_PLANS, CudaQueue, gpu_memory, require_gpu
from models.errors import BackendError, ReleaseFaultError, ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from models.engine.backends.backend import Beside, Session, Shape
    from models.engine.backends.onnxruntime_gpu import GpuOptions, Provider
    from models.engine.backends.torch_queue import Queue
    from models.types import Contract, Release

ONNX = "model.onnx"
MAX_LANES = 16
LOG_ERRORS = 3
UNREADABLE = frozenset({"InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented"})
"""Exceptions of the runtime that speak of the graph; all others may be the GPU's state, which passes."""


class OnnxRuntimeBackend:
    """Fulfils Backend."""

    name = "onnxruntime"

    def __init__(
        self,
        *,
        threads: int,
        precision: str = "auto",
        gpu: bool = False,
        gpu_share: float = 1.0,
        engines: Path | None = None,
    ) -> None:
        """Start the runtime.

        Args:
            threads: CPU threads of all lanes together, >= 1.
            precision: ``fp16`` needs TensorRT, ``auto`` takes it there; a CPU computes in fp32 always.
            gpu: run on the first NVIDIA GPU that is visible.
            gpu_share: GPUs that are reserved for this process; below 1 it keeps to that part of the memory.
            engines: folder for the engines that TensorRT takes minutes to build; None builds them for every process.

        Raises:
            SettingsError: ``gpu`` without a GPU, a build of the runtime that knows it, or the precision on it.

        """
        if gpu:
            # The runtime then finds CUDA's libraries, which came with torch, in the process.
            import torch  # noqa: F401, PLC0415 - a service loads only the runtime it uses
        import onnxruntime  # noqa: PLC0415 - as above

        self._runtime: Any = onnxruntime
        self._threads = threads
        self._gpu: GpuOptions | None = None
        self._make_queue: Callable[[], Queue] = CudaQueue
        self._providers = providers
        if gpu:
            available = onnxruntime.get_available_providers()
            require_cuda(available)
            require_gpu(gpu_share)
            self._gpu = choose(
                precision,
                tensorrt=TENSORRT in available and load_tensorrt(),
                memory=gpu_memory(gpu_share),
                engines=engines,
            )

    def plans(self) -> tuple[Plan, ...]:
        """Return large batches for a GPU; else one lane a thread, or one lane with all threads."""
        if self._gpu is not None:
            return GPU_PLANS
        most = min(self._threads, MAX_LANES)
        return tuple(Plan(lanes, 1) for lanes in sorted({most, 1}, reverse=True))

    def load(
        self,
        release: Release,
        plan: Plan | None = None,
        beside: Beside | None = None,  # noqa: ARG002 - nothing here can be done elsewhere
    ) -> Session:
        """Load ``release``. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        data = release.files.get(ONNX)
        if data is None:
            msg = "the release holds no network; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        network = data.tobytes()
        if self._gpu is not None:
            return self._load_gpu(network, release, plan, self._gpu)
        session = self._open(network, [(CPU, {})], max(self._threads // plan.lanes, 1))
        return OnnxRuntimeSession(session, plan)

    def _load_gpu(self, network: bytes, release: Release, plan: Plan, options: GpuOptions) -> Session:
        contract: Contract = release.contract

        def make_lane(tensorrt: bool) -> GpuLane:  # noqa: FBT001 - the one question that it answers
            queue = self._make_queue()
            wanted = [
                (name, settings)
                for name, settings in self._providers(
                    options, contract, plan, digest=release.digest, handle=queue.handle
                )
                if tensorrt or name != TENSORRT
            ]
            session = self._open(network, wanted, 1)
            # Else a failing call is repeated on another provider, without a word and for good.
            session.disable_fallback()
            check_used(session.get_providers(), wanted)
            return GpuLane(session, queue, max_batch=plan.max_batch, imgsz=contract.imgsz)

        try:
            return OnnxRuntimeGpuSession(plan, contract, make_lane, tensorrt=options.tensorrt)
        except RuntimeError as error:  # what torch raises for the GPU's memory
            msg = "the network could not be brought onto the GPU: it is out of memory or broken; free some, or restart"
            raise ReleaseFaultError(msg, step="load") from error

    def _open(self, network: bytes, wanted: list[Provider], threads: int) -> Any:
        """Return the runtime's session of ``network``, with ``threads`` >= 1 of its own."""
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_ERRORS
        # Spinning threads take the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._runtime.InferenceSession(network, options, providers=wanted)
        except MemoryError as error:
            msg = "there is no memory to load the network; free some or lower the number of models"
            raise ReleaseFaultError(msg, step="load") from error
        except Exception as error:  # the runtime's exceptions share no base but this
            if self._gpu is not None and type(error).__name__ not in UNREADABLE:
                msg = "the network could not be brought onto the GPU: it is out of memory or its libraries do not fit"
                raise ReleaseFaultError(msg, step="load") from error
            msg = "the network cannot be read; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].name != INPUT or inputs[0].type != "tensor(uint8)":
            msg = "the network does not take uint8 images (n, h, w, 3) or has not one output; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        return session


class OnnxRuntimeSession:
    """Fulfils Session on a CPU; the runtime's session is safe to use from several threads, so lanes share it."""

    def __init__(self, session: Any, plan: Plan) -> None:
        """Drive ``session`` by ``plan``."""
        self.plan = plan
        self._session: Any = session

    def infer(
        self,
        batch: NDArray[np.uint8],
        lane: int,  # noqa: ARG002 - lanes share the session
        *,
        alone: bool = False,  # noqa: ARG002 - and its threads
    ) -> NDArray[np.float32]:
        """Run the images one by one."""
        session = self._session
        if session is None:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        try:
            outputs = [session.run(None, {INPUT: batch[i : i + 1]})[0] for i in range(len(batch))]
        except Exception as error:  # the runtime's exceptions share no base but this
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Run one blank image, so that the memory of this shape is there."""
        if alone or copy:
            return False
        self.infer(np.zeros((1, *shape, 3), np.uint8), 0)
        return True

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Keep everything: nothing belongs to one shape."""

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:  # noqa: ARG002 - nothing belongs to one shape
        """Return 0."""
        return 0

    def distrust(self) -> bool:
        """Return False: nothing is kept on disk."""
        return False

    def close(self) -> None:
        """Drop the session."""
        self._session = None
