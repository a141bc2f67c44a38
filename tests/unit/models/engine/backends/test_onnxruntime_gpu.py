"""What ONNX Runtime is told on a GPU, and which of its sessions a tensor runs on; all of it without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.backends import onnxruntime_gpu
from models.engine.backends.backend import Plan
from models.engine.backends.onnxruntime_gpu import (
    CPU,
    CUDA,
    TENSORRT,
    GpuOptions,
    OnnxRuntimeGpuSession,
    check_used,
    choose,
    providers,
    require_cuda,
    shortest_side,
)
from models.errors import BackendError, ReleaseFaultError, SettingsError
from models.types import Contract

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = Contract("detect", ("apple",), 32, 640, "end2end")
GIB = 1024**3
TWO_LANES = Plan(2, 16)


def told(options: GpuOptions, contract: Contract = CONTRACT, plan: Plan = TWO_LANES) -> dict[str, dict[str, str]]:
    """Return the providers and their options."""
    return dict(providers(options, contract, plan, digest="ab" * 32, handle=1234))


@pytest.mark.parametrize(
    ("precision", "tensorrt", "half", "tf32"),
    [
        ("auto", True, "fp16", True),
        ("auto", False, "fp32", True),
        ("fp32", True, "fp32", False),
        ("fp16", True, "fp16", True),
    ],
)
def test_precision(precision: str, tensorrt: bool, half: str, tf32: bool) -> None:  # noqa: FBT001
    """``auto`` takes fp16 where TensorRT is; fp32 that was asked for is kept to the last bit of its mantissa."""
    options = choose(precision, tensorrt=tensorrt, memory=GIB, engines=None)
    assert (options.precision, options.tf32) == (half, tf32)
    assert told(options)[CUDA]["use_tf32"] == str(int(tf32))
    if tensorrt:
        assert told(options)[TENSORRT]["trt_fp16_enable"] == str(int(half == "fp16"))


def test_what_is_missing_is_named() -> None:
    """A CPU build, and fp16 without TensorRT, are refused with what to install."""
    with pytest.raises(SettingsError, match=r"steelyard\[gpu\]"):
        require_cuda([CPU])
    require_cuda([TENSORRT, CUDA, CPU])
    with pytest.raises(SettingsError, match="install tensorrt"):
        choose("fp16", tensorrt=False, memory=GIB, engines=None)


def test_tensorrt_comes_first_and_cuda_behind_it() -> None:
    """The order is TensorRT, CUDA, CPU; without TensorRT the rest."""
    assert list(told(GpuOptions("fp16", tensorrt=True, memory=GIB))) == [TENSORRT, CUDA, CPU]
    assert list(told(GpuOptions("fp32", tensorrt=False, memory=GIB))) == [CUDA, CPU]


def test_lanes_share_the_memory_and_use_their_own_stream() -> None:
    """Each lane of each of three releases takes its part, and both providers queue on the lane's stream."""
    found = told(GpuOptions("fp16", tensorrt=True, memory=GIB))
    assert found[CUDA]["gpu_mem_limit"] == str(GIB // 6)
    for name in (TENSORRT, CUDA):
        assert (found[name]["has_user_compute_stream"], found[name]["user_compute_stream"]) == ("1", "1234")


@pytest.mark.parametrize(
    ("contract", "shortest"),
    [
        (CONTRACT, 128),
        (Contract("detect", ("a",), 32, 96, "raw"), 96),
        (Contract("detect", ("a",), 32, 640, "raw", dynamic=False), 640),
    ],
)
def test_tensorrt_builds_for_the_shapes_that_come(contract: Contract, shortest: int) -> None:
    """From one image of the shortest sides to the largest batch of squares, whatever the plan."""
    options = told(GpuOptions("fp16", tensorrt=True, memory=GIB), contract, Plan(1, 64))[TENSORRT]
    assert shortest_side(contract) == shortest
    assert options["trt_profile_min_shapes"] == f"images:1x{shortest}x{shortest}x3"
    assert options["trt_profile_max_shapes"] == f"images:64x{contract.imgsz}x{contract.imgsz}x3"


def test_engines_of_two_releases_lie_apart(tmp_path: Path) -> None:
    """The runtime's cache knows graphs by their form, and a new version has the form of the old one."""
    options = GpuOptions("fp16", tensorrt=True, memory=GIB, engines=tmp_path)
    folders = [
        dict(providers(options, CONTRACT, Plan(1, 1), digest=digest, handle=0))[TENSORRT]["trt_engine_cache_path"]
        for digest in ("a" * 64, "b" * 64)
    ]
    assert folders == [str(tmp_path / (letter * 64) / "fp16") for letter in "ab"]
    assert "trt_engine_cache_enable" not in told(GpuOptions("fp16", tensorrt=True, memory=GIB))[TENSORRT]


def test_a_provider_that_is_not_used_is_a_fault() -> None:
    """The message says which one, and the load is tried again."""
    wanted = providers(GpuOptions("fp16", tensorrt=True, memory=GIB), CONTRACT, Plan(1, 1), digest="a", handle=0)
    check_used([TENSORRT, CUDA, CPU], wanted)
    with pytest.raises(ReleaseFaultError, match="TensorRT"):
        check_used([CUDA, CPU], wanted)
    with pytest.raises(ReleaseFaultError, match="the GPU"):
        check_used([TENSORRT, CPU], wanted)


class FakeLane:
    """Answers with zeros and counts; says whether it was made with TensorRT."""

    def __init__(self, tensorrt: bool) -> None:  # noqa: FBT001 - as the factory's contract has it
        """Remember the question."""
        self.tensorrt = tensorrt
        self.sizes: list[int] = []
        self.error: Exception | None = None

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Count the batch."""
        if self.error is not None:
            raise self.error
        self.sizes.append(len(batch))
        return np.zeros((len(batch), 1, 6), np.float32)


def session(plan: Plan, *, tensorrt: bool) -> tuple[OnnxRuntimeGpuSession, list[FakeLane]]:
    """Return a session, and the lanes that it makes as it makes them."""
    made: list[FakeLane] = []

    def make(tensorrt: bool) -> FakeLane:  # noqa: FBT001 - as above
        made.append(FakeLane(tensorrt))
        return made[-1]

    return OnnxRuntimeGpuSession(plan, CONTRACT, make, tensorrt=tensorrt), made


def test_thin_tensors_run_without_tensorrt() -> None:
    """A shape outside TensorRT's range gets a session of its own on first use; no other shape ever waits for one."""
    running, made = session(Plan(1, 4), tensorrt=True)
    for height in (640, 128, 96, 32, 640):
        running.infer(np.zeros((1, height, 640, 3), np.uint8), 0)
    assert [(lane.tensorrt, len(lane.sizes)) for lane in made] == [(True, 3), (False, 2)]
    running, made = session(Plan(1, 4), tensorrt=False)
    running.infer(np.zeros((1, 32, 640, 3), np.uint8), 0)
    assert len(made) == 1


def test_warming_runs_the_smallest_and_the_largest_batch_on_every_lane() -> None:
    """Both ends of the range have chosen their kernels before the first image."""
    running, made = session(Plan(2, 16), tensorrt=True)
    running.warm((480, 640))
    assert [lane.sizes for lane in made] == [[1, 16], [1, 16]]
    running.forget((480, 640))
    assert running.shape_cost((480, 640)) == 0


def test_misuse_and_failures_are_backend_errors() -> None:
    """Batches that do not fit the buffers never reach them, and what the runtime raises is translated."""
    running, made = session(Plan(1, 2), tensorrt=False)
    for shape in ((3, 640, 640, 3), (1, 672, 640, 3), (1, 600, 640, 3), (1, 640, 640, 1), (0, 640, 640, 3)):
        with pytest.raises(BackendError, match="This is a bug"):
            running.infer(np.zeros(shape, np.uint8), 0)
    made[0].error = RuntimeError("out of memory")
    with pytest.raises(BackendError, match="send the image again"):
        running.infer(np.zeros((1, 640, 640, 3), np.uint8), 0)


def test_tensorrt_is_looked_for_without_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are absent or do not load mean that there is none."""

    def fail(_: str) -> None:
        msg = "libnvinfer.so.10"
        raise OSError(msg)

    monkeypatch.setattr(onnxruntime_gpu.importlib, "import_module", fail)
    assert onnxruntime_gpu.load_tensorrt() is False
