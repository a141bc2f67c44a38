"""One lane's stream on one GPU: pinned memory, copies that do not wait, recorded graphs. Both GPU runtimes use it.

torch provides all of it, so that nothing but torch and the runtime itself must be installed. Nothing in this file runs
without a GPU; what uses it does, on a queue of the CPU (``torch_fake_queue.py``).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from models.engine.backends.backend import Plan
from models.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GPU_PLANS = (Plan(1, 32), Plan(2, 16), Plan(1, 16), Plan(1, 8), Plan(1, 4), Plan(1, 1))
"""Large batches first. Two lanes of half the size copy and postprocess while the other computes."""
WARM_RUNS = 3
"""Runs before a recording: libraries set themselves up and kernels are chosen in them."""
MEMORY_SHARE = 0.9
"""Part of the reserved GPU memory that a replica may fill; the rest is for the driver and the libraries."""

_recording = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A recorded run: ``replay`` repeats it on the memory that it was recorded with, and fills ``output`` anew."""

    replay: Callable[[], object]
    output: Any


class Queue(Protocol):
    """Where a lane's memory lies and its work is queued. One thread at a time, ``record`` aside."""

    @property
    def device(self) -> Any:
        """Return the torch device."""
        ...

    @property
    def handle(self) -> int:
        """Return the address of the stream, for other runtimes to queue on."""
        ...

    def host(self, size: int, dtype: Any) -> Any:
        """Return a flat tensor of ``size`` elements in host memory that the device can copy from and to directly."""
        ...

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Queue what is called inside on this stream, without gradients."""
        ...

    def finish(self) -> None:
        """Wait until all that was queued is done, without burning a core."""
        ...

    def record(self, run: Callable[[], Any]) -> Recording:
        """Warm ``run`` up and record it. May run beside other lanes' work and this lane's own."""
        ...


class CudaQueue:
    """Fulfils Queue on an NVIDIA GPU, the first that is visible."""

    def __init__(self) -> None:
        """Make a stream."""
        import torch  # noqa: PLC0415 - a service loads only the runtime it uses

        self._torch: Any = torch
        self.device = torch.device("cuda", 0)
        self._stream = torch.cuda.Stream(self.device)
        self._side = torch.cuda.Stream(self.device)
        self._done = torch.cuda.Event(blocking=True)
        # Replays of one lane never overlap, so all its graphs may compute in the same memory.
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def handle(self) -> int:
        """Return the stream's address."""
        return int(self._stream.cuda_stream)

    def host(self, size: int, dtype: Any) -> Any:
        """Return pinned memory."""
        return self._torch.empty(size, dtype=dtype, pin_memory=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the stream current in this thread."""
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            yield

    def finish(self) -> None:
        """Sleep until the stream is empty."""
        self._done.record(self._stream)
        self._done.synchronize()

    def record(self, run: Callable[[], Any]) -> Recording:
        """Capture a CUDA graph, one at a time in the process; other threads may use the GPU meanwhile."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        cudnn = torch.backends.cudnn
        with _recording, torch.inference_mode():
            before, cudnn.benchmark = cudnn.benchmark, True
            try:
                with torch.cuda.stream(self._side):
                    for _ in range(WARM_RUNS):
                        run()
                self._side.synchronize()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
                    output = run()
            finally:
                cudnn.benchmark = before
        return Recording(graph.replay, output)


def require_gpu(share: float) -> None:
    """Check that torch sees a GPU and keep this process to ``share`` (0 to 1] of its memory. Raises SettingsError."""
    import torch  # noqa: PLC0415 - a service loads only the runtime it uses

    if torch.version.cuda is None:
        msg = (
            "gpus is set, but the installed torch knows only CPUs: install torch from PyPI, which brings CUDA along, "
            "or set gpus to 0"
        )
        raise SettingsError(msg)
    if not torch.cuda.is_available():
        msg = "gpus is set, but no GPU can be used: check the driver with nvidia-smi, or set gpus to 0"
        raise SettingsError(msg)
    torch.cuda.set_per_process_memory_fraction(memory_fraction(share), 0)


def memory_fraction(share: float) -> float:
    """Return the part of a GPU's memory that a replica which reserves ``share`` GPUs may fill, more than 0 to 0.9."""
    return min(share, 1.0) * MEMORY_SHARE


def gpu_memory(share: float) -> int:
    """Return the same in bytes of the first GPU."""
    import torch  # noqa: PLC0415 - a service loads only the runtime it uses

    return int(torch.cuda.get_device_properties(0).total_memory * memory_fraction(share))
