"""torch: fp16, channels last and CUDA graphs on NVIDIA GPUs; fp32 on a CPU, where it is the slowest choice.

The GPU's own parts are few (``torch_queue.CudaQueue``). Everything else runs on a CPU too and is tested there.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.backends.backend import Plan
from models.engine.backends.torch_lanes import CpuLane, GpuLane, buckets
from models.engine.backends.torch_network import place, rebuild, twin
from models.engine.backends.torch_queue import GPU_PLANS, CudaQueue, require_gpu
from models.errors import BackendError, ReleaseFaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from models.engine.backends.backend import Beside, Shape
    from models.engine.backends.torch_lanes import Lane
    from models.engine.backends.torch_queue import Queue
    from models.types import Contract, Release

MAX_LANES = 16
RANK = 4
GRAPH_BYTES = 4 * 1024**2
"""Bytes of a recorded graph without its memory, which all graphs of a lane share. An estimate, not a measurement."""
FINEST_STRIDE = 8
"""Tensor pixels between the anchors of the finest level; with the coarser levels there are a third more of them."""


class TorchBackend:
    """Fulfils Backend."""

    name = "torch"

    def __init__(self, *, threads: int, precision: str = "auto", gpu: bool = False, gpu_share: float = 1.0) -> None:
        """Start the runtime.

        Args:
            threads: CPU threads of all lanes together, >= 1.
            precision: ``auto`` and ``fp16`` compute in fp16 on a GPU; ``fp32``, and a CPU always, in fp32.
            gpu: run on the first NVIDIA GPU that is visible.
            gpu_share: GPUs that are reserved for this process; below 1 it keeps to that part of the memory.

        Raises:
            SettingsError: ``gpu`` where torch sees none.

        """
        self._threads = threads
        self._make_queue: Callable[[], Queue] | None = CudaQueue if gpu else None
        self.precision = "fp16" if gpu and precision != "fp32" else "fp32"
        if gpu:
            require_gpu(gpu_share)
            import torch  # noqa: PLC0415 - a service loads only the runtime it uses

            # fp32 that was asked for is not to be rounded to 10 bits on the way.
            torch.backends.cudnn.allow_tf32 = precision != "fp32"

    def plans(self) -> tuple[Plan, ...]:
        """Return large batches for a GPU; else one lane a thread, or one lane with all threads."""
        if self._make_queue is not None:
            return GPU_PLANS
        most = min(self._threads, MAX_LANES)
        return tuple(Plan(lanes, 1) for lanes in sorted({most, 1}, reverse=True))

    def load(
        self,
        release: Release,
        plan: Plan | None = None,
        beside: Beside | None = None,  # noqa: ARG002 - nothing here can be done elsewhere
    ) -> TorchSession:
        """Rebuild ``release``. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        try:
            network = rebuild(release.files, release.contract)
            if self._make_queue is not None:
                lanes = self._gpu_lanes(network, plan, release.contract, self._make_queue)
                return TorchSession(lanes, plan, release.contract, records=True)
            threads = max(self._threads // plan.lanes, 1)
            network = place(network, "cpu", half=False)
            networks = [network, *(twin(network) for _ in range(plan.lanes - 1))]
            return TorchSession([CpuLane(each, threads) for each in networks], plan, release.contract, records=False)
        except MemoryError as error:
            msg = "there is no memory to load the network; free some or lower the number of models"
            raise ReleaseFaultError(msg, step="load") from error
        except RuntimeError as error:  # what torch raises for the GPU, its memory included
            msg = "the network could not be brought onto the GPU: it is out of memory or broken; free some, or restart"
            raise ReleaseFaultError(msg, step="load") from error

    def _gpu_lanes(
        self, network: Any, plan: Plan, contract: Contract, make_queue: Callable[[], Queue]
    ) -> list[GpuLane]:
        queues = [make_queue() for _ in range(plan.lanes)]
        network = place(network, queues[0].device, half=self.precision == "fp16")
        return [GpuLane(twin(network), twin, queue, max_batch=plan.max_batch, imgsz=contract.imgsz) for queue in queues]


class TorchSession:
    """Fulfils Session."""

    def __init__(self, lanes: Sequence[Lane], plan: Plan, contract: Contract, *, records: bool) -> None:
        """Run on ``lanes``, one for each of the plan's; ``records`` says whether they record graphs."""
        self.plan = plan
        self._lanes = list(lanes)
        self._contract = contract
        self._records = records
        self._lock = threading.Lock()

    def infer(
        self,
        batch: NDArray[np.uint8],
        lane: int,
        *,
        alone: bool = False,  # noqa: ARG002 - a lane has all that a lone call could use
    ) -> NDArray[np.float32]:
        """Run the batch on the lane's own network."""
        lanes = self._lanes
        if not lanes:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        stride, imgsz = self._contract.stride, self._contract.imgsz
        if (
            batch.dtype != np.uint8
            or batch.ndim != RANK
            or batch.shape[3] != 3  # noqa: PLR2004 - RGB
            or not 0 < len(batch) <= max(self.plan.max_batch, 1)
            or any(side % stride or not 0 < side <= imgsz for side in batch.shape[1:3])
        ):
            msg = f"the detector cannot take a batch of shape {batch.shape}. This is a bug."
            raise BackendError(msg)
        try:
            return lanes[lane].infer(batch)
        except RuntimeError as error:
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Record the graphs of ``shape`` on every lane; on a CPU run one image, so that its kernels are made."""
        if alone or copy:
            return False
        if not self._records:
            self.infer(np.zeros((1, *shape, 3), np.uint8), 0)
            return True
        with self._lock:
            try:
                for lane in self._lanes:
                    lane.warm(shape)
            except RuntimeError as error:
                self._forget(shape)
                msg = f"tensors of {shape[0]} x {shape[1]} cannot be recorded; they still run, slower"
                raise BackendError(msg) from error
        return True

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Drop the graphs of ``shape``."""
        if not alone and not copy:
            with self._lock:
                self._forget(shape)

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:
        """Return the bytes of the outputs and graphs of ``shape`` on a GPU, 0 on a CPU.

        Images and activations lie in memory that all shapes of a lane share, sized for the largest.
        """
        if alone or copy or not self._records:
            return 0
        sizes = buckets(self.plan.max_batch)
        row = 6 * 300
        if self._contract.head == "raw":
            row = (4 + len(self._contract.names)) * math.prod(shape) * 4 // (3 * FINEST_STRIDE**2)
        return self.plan.lanes * (len(sizes) * GRAPH_BYTES + sum(sizes) * row * 4)

    def distrust(self) -> bool:
        """Return False: nothing is kept on disk."""
        return False

    def close(self) -> None:
        """Drop networks, graphs and buffers."""
        with self._lock:
            self._lanes = []

    def _forget(self, shape: Shape) -> None:
        for lane in self._lanes:
            lane.forget(shape)
