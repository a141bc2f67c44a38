"""What is ONNX Runtime's own; the protocol's promises are held against it in ``test_backend.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.engine.backends.backend import Plan
from models.engine.backends.onnxruntime import OnnxRuntimeBackend
from models.engine.backends.onnxruntime_gpu import GpuOptions
from models.engine.backends.torch_fake_queue import FakeQueue
from models.errors import ReleaseFaultError, ReleaseRejectedError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from models.types import Release

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]) -> Release:
    """Return a release of the tiny network."""
    return make_release(files={"model.onnx": tiny_network()})


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 40])
def test_no_plan_takes_more_threads_than_there_are(release: Release, threads: int) -> None:
    """Lanes times the threads of each stay within what the replica may use, spinning none of them."""
    backend = OnnxRuntimeBackend(threads=threads)
    for plan in (*backend.plans(), Plan(max(threads // 2, 1), 1)):
        options = backend.load(release, plan)._session.get_session_options()
        assert 1 <= plan.lanes * options.intra_op_num_threads <= threads
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_gpu_that_the_build_does_not_know_is_refused() -> None:
    """Asking for a GPU never silently serves on the CPU."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build knows GPUs")
    with pytest.raises(SettingsError, match=r"steelyard\[gpu\]"):
        OnnxRuntimeBackend(threads=1, gpu=True)


def test_a_session_that_leaves_the_gpu_is_a_fault(release: Release) -> None:
    """A provider that the runtime drops without a word fails the load, and it is tried again."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build knows GPUs")
    backend = OnnxRuntimeBackend(threads=1)
    backend._gpu, backend._make_queue = GpuOptions("fp32", tensorrt=False, memory=2**30), FakeQueue
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(ReleaseFaultError, match="the GPU"):
        backend.load(release)


@pytest.mark.parametrize(("name", "kind"), [("InvalidProtobuf", ReleaseRejectedError), ("Fail", ReleaseFaultError)])
def test_on_a_gpu_only_an_unreadable_graph_is_rejected_for_good(
    release: Release, monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Exception]
) -> None:
    """Memory or a driver may fail today and not tomorrow; the version is not to blame."""
    backend = OnnxRuntimeBackend(threads=1)
    backend._gpu, backend._make_queue = GpuOptions("fp32", tensorrt=False, memory=2**30), FakeQueue

    def fail(*_: object, **__: object) -> None:
        raise type(name, (Exception,), {})

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(kind):
        backend.load(release)
