"""ONNX Runtime on NVIDIA GPUs: TensorRT where it is installed, else CUDA; buffers and stream of the lane's own.

Each lane has a session of its own, because a session is bound to one stream. Images go from pinned memory into a buffer
on the GPU and answers the same way back, so the runtime allocates and copies nothing itself.

TensorRT builds kernels for a range of shapes, and would build them again, for minutes, on the first image outside. The
range therefore covers all shapes but the thinnest, and those run on the CUDA provider.
"""

from __future__ import annotations

import importlib
import logging
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.backends.torch_queue import GPU_PLANS
from models.errors import BackendError, ReleaseFaultError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from models.engine.backends.backend import Plan, Shape
    from models.engine.backends.torch_queue import Queue
    from models.types import Contract

logger = logging.getLogger(__name__)

INPUT = "images"
OUTPUT = "detections"
CHANNELS = 3
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
SHORTEST_SIDE = 4
"""Strides of the range's shortest side. A smaller square has fewer anchors than an end-to-end head answers boxes."""
MOST_IMAGES = max(plan.max_batch for plan in GPU_PLANS)
USUAL_IMAGES = 16
RESIDENT = 3
"""Releases that may be loaded at once, each with an arena of its own: serving, previous and candidate."""
MIB = 1024**2

Provider = tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How sessions are made on a GPU.

    precision: ``fp32`` or ``fp16``. tensorrt: whether TensorRT is tried. memory: bytes that the runtime's arenas may
    take, of all lanes and resident releases together. engines: folder of built TensorRT engines, None keeps none.
    tf32: whether fp32 may be rounded to 10 bits of mantissa on the way.
    """

    precision: str
    tensorrt: bool
    memory: int
    engines: Path | None = None
    tf32: bool = True


def require_cuda(available: list[str]) -> None:
    """Refuse a build of the runtime whose providers (``available``) know only CPUs. Raises SettingsError."""
    if CUDA not in available:
        msg = (
            "gpus is set, but the installed runtime knows only CPUs: uninstall onnxruntime and install steelyard[gpu], "
            "choose backend=torch, or set gpus to 0"
        )
        raise SettingsError(msg)


def choose(precision: str, *, tensorrt: bool, memory: int, engines: Path | None) -> GpuOptions:
    """Return the options in force.

    Args:
        precision: ``auto`` takes fp16 under TensorRT and fp32 elsewhere.
        tensorrt: whether the build knows it and its libraries are loaded.
        memory: bytes.
        engines: folder.

    Raises:
        SettingsError: fp16 is asked for without TensorRT.

    """
    if precision == "fp16" and not tensorrt:
        msg = (
            "backend=onnxruntime computes in fp16 only with TensorRT, which is missing: install tensorrt, choose "
            "backend=torch, or set precision to auto or fp32"
        )
        raise SettingsError(msg)
    half = tensorrt and precision != "fp32"
    # fp32 that was asked for is not to be rounded to 10 bits on the way.
    return GpuOptions("fp16" if half else "fp32", tensorrt, memory, engines, tf32=precision != "fp32")


def load_tensorrt() -> bool:
    """Load TensorRT's libraries where they are installed as a Python package; return whether they are."""
    try:
        importlib.import_module("tensorrt")
    except (ImportError, OSError):
        return False
    return True


def providers(options: GpuOptions, contract: Contract, plan: Plan, *, digest: str, handle: int) -> list[Provider]:
    """Return the providers of one lane's session, the fastest first.

    Args:
        options: of the backend.
        contract: of the release; its shapes make the range that TensorRT builds for.
        plan: its lanes share ``options.memory``.
        digest: of the release. TensorRT's cache tells graphs apart by their form, not by their weights, so each release
            has a folder of its own.
        handle: address of the lane's stream.

    """
    memory = options.memory // (RESIDENT * plan.lanes)
    stream = {"device_id": "0", "has_user_compute_stream": "1", "user_compute_stream": str(handle)}
    cuda = stream | {
        "gpu_mem_limit": str(memory),
        "arena_extend_strategy": "kSameAsRequested",
        # An exhaustive search would be made anew for every shape, while an image waits.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
    }
    found: list[Provider] = [(CUDA, cuda), (CPU, {})]
    if not options.tensorrt:
        return found
    shortest = shortest_side(contract)
    tensorrt = stream | {
        "trt_fp16_enable": str(int(options.precision == "fp16")),
        "trt_max_workspace_size": str(min(memory, 4096 * MIB)),
        "trt_profile_min_shapes": _profile(1, shortest),
        "trt_profile_opt_shapes": _profile(USUAL_IMAGES, contract.imgsz),
        "trt_profile_max_shapes": _profile(max(MOST_IMAGES, plan.max_batch), contract.imgsz),
    }
    if options.engines is not None:
        folder = options.engines / digest / options.precision
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tensorrt |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(folder),
        }
    return [(TENSORRT, tensorrt), *found]


def shortest_side(contract: Contract) -> int:
    """Return the pixels of the shortest tensor side that TensorRT builds for."""
    return min(SHORTEST_SIDE * contract.stride, contract.imgsz) if contract.dynamic else contract.imgsz


def _profile(images: int, side: int) -> str:
    return f"{INPUT}:{images}x{side}x{side}x{CHANNELS}"


def check_used(used: list[str], wanted: list[Provider]) -> None:
    """Refuse a session that has silently left the GPU. Raises ReleaseFaultError (step ``load``)."""
    for name, _ in wanted:
        if name in used:
            continue
        what = "TensorRT" if name == TENSORRT else "the GPU"
        msg = f"{what} could not be used; check the driver and that its libraries fit the runtime's version"
        raise ReleaseFaultError(msg, step="load")


class GpuLane:
    """One session on one stream, with its buffers. Safe from several threads, which take turns."""

    def __init__(self, session: Any, queue: Queue, *, max_batch: int, imgsz: int) -> None:
        """Allocate the buffers of at most ``max_batch`` images of at most ``imgsz`` x ``imgsz`` pixels."""
        import torch  # noqa: PLC0415 - a service loads only the runtime it uses

        self._torch: Any = torch
        self._session = session
        self._queue = queue
        self._binding = session.io_binding()
        largest = max_batch * imgsz * imgsz * CHANNELS
        self._inlet = queue.host(largest, torch.uint8)
        self._outlet = queue.host(0, torch.float32)
        with queue.entered():
            self._images = torch.zeros(largest, dtype=torch.uint8, device=queue.device)
            self._output = torch.zeros(0, dtype=torch.float32, device=queue.device)
        queue.finish()
        self._rows: dict[Shape, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the batch as one tensor; what the runtime raises comes through."""
        queue, kind = self._queue, self._queue.device.type
        shape = (batch.shape[1], batch.shape[2])
        with self._lock, queue.entered():
            inlet, images = self._inlet[: batch.size], self._images[: batch.size]
            np.copyto(inlet.numpy().reshape(batch.shape), batch)
            images.copy_(inlet, non_blocking=True)
            self._binding.bind_input(INPUT, kind, 0, np.uint8, batch.shape, images.data_ptr())
            rows = self._rows.get(shape)
            if rows is None:
                return self._learn(shape)
            size = len(batch) * math.prod(rows)
            self._make_room(size)
            self._binding.bind_output(OUTPUT, kind, 0, np.float32, (len(batch), *rows), self._output.data_ptr())
            self._session.run_with_iobinding(self._binding)
            outlet = self._outlet[:size]
            outlet.copy_(self._output[:size], non_blocking=True)
            queue.finish()
            answer: NDArray[np.float32] = outlet.numpy().reshape(len(batch), *rows).copy()
        return answer

    def _learn(self, shape: Shape) -> NDArray[np.float32]:
        """Run what is bound, and let the runtime find out how large the answer to an image of ``shape`` is."""
        self._binding.bind_output(OUTPUT, "cpu")
        self._session.run_with_iobinding(self._binding)
        self._queue.finish()
        answer = np.array(self._binding.copy_outputs_to_cpu()[0], np.float32)
        self._rows[shape] = answer.shape[1:]
        return answer

    def _make_room(self, size: int) -> None:
        if self._output.numel() < size:
            self._output = self._torch.zeros(size, dtype=self._torch.float32, device=self._queue.device)
            self._outlet = self._queue.host(size, self._torch.float32)


class OnnxRuntimeGpuSession:
    """Fulfils Session."""

    def __init__(
        self,
        plan: Plan,
        contract: Contract,
        make_lane: Callable[[bool], GpuLane],
        *,
        tensorrt: bool,
    ) -> None:
        """Make the lanes.

        Args:
            plan: how many, and how many images each takes.
            contract: of the release.
            make_lane: loads one, with TensorRT or without.
            tensorrt: whether shapes in its range run on it.

        """
        self.plan = plan
        self._stride, self._imgsz = contract.stride, contract.imgsz
        self._shortest = shortest_side(contract) if tensorrt else 0
        self._make_lane = make_lane
        self._lanes = [make_lane(tensorrt) for _ in range(plan.lanes)]
        self._thin: dict[int, GpuLane] = {}
        self._lock = threading.Lock()

    def infer(
        self,
        batch: NDArray[np.uint8],
        lane: int,
        *,
        alone: bool = False,  # noqa: ARG002 - a GPU is one
    ) -> NDArray[np.float32]:
        """Run the batch as one tensor on the lane's session."""
        if not self._lanes:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        sides = batch.shape[1:3]
        if (
            batch.dtype != np.uint8
            or batch.shape[3:] != (CHANNELS,)
            or not 0 < len(batch) <= self.plan.max_batch
            or any(side % self._stride or not 0 < side <= self._imgsz for side in sides)
        ):
            msg = f"the detector cannot take a batch of shape {batch.shape}. This is a bug."
            raise BackendError(msg)
        try:
            return self._lane(lane, min(sides)).infer(batch)
        except Exception as error:  # the runtime's exceptions share no base but this
            msg = "the detector failed on this batch; send the image again"
            raise BackendError(msg) from error

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Run a blank batch of one image and one of the most, so that kernels are chosen and memory is there."""
        if alone or copy:
            return False
        for count in dict.fromkeys((1, self.plan.max_batch)):
            for lane in range(self.plan.lanes):
                self.infer(np.zeros((count, *shape, CHANNELS), np.uint8), lane)
        return True

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Keep everything: nothing belongs to one shape."""

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:  # noqa: ARG002 - nothing belongs to one shape
        """Return 0."""
        return 0

    def distrust(self) -> bool:
        """Return False: TensorRT checks what it has built itself."""
        return False

    def close(self) -> None:
        """Drop the sessions."""
        with self._lock:
            self._lanes = []
            self._thin = {}

    def _lane(self, lane: int, shorter_side: int) -> GpuLane:
        """Return the lane's session; for a tensor that is too thin for TensorRT its other one, made on first use."""
        if shorter_side >= self._shortest:
            return self._lanes[lane]
        with self._lock:
            if lane not in self._thin:
                logger.info("tensors with a side of %d pixels run without TensorRT", shorter_side)
                self._thin[lane] = self._make_lane(False)  # noqa: FBT003 - the one question that it answers
            return self._thin[lane]
