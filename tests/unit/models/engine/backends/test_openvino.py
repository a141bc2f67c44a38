"""What is OpenVINO's own; the protocol's promises are held against it in ``test_backend.py``."""

from __future__ import annotations

import ctypes
import gc
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.backends import openvino as module
from models.engine.backends.backend import Plan
from models.engine.backends.openvino import MAX_STREAMS, OpenVinoBackend
from models.errors import ReleaseFaultError, ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release

pytest.importorskip("openvino")


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]) -> Release:
    """Return a release of the tiny network."""
    return make_release(files={"model.onnx": tiny_network()})


def test_precision_follows_setting_and_processor() -> None:
    """fp32 is kept when asked for; auto takes bf16 only where the processor has it."""
    assert OpenVinoBackend(threads=1, precision="fp32").precision == "f32"
    assert OpenVinoBackend(threads=1, precision="auto").precision in {"bf16", "f32"}


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 40])
def test_plans_keep_to_the_threads(threads: int) -> None:
    """One image a call, decoded on the lane; never more threads at work than there are, one lane waiting its turn."""
    plans = OpenVinoBackend(threads=threads, precision="fp32").plans()
    assert [plan.workers for plan in plans] == sorted({plan.workers for plan in plans}, reverse=True)
    assert plans[0].workers == min(threads, MAX_STREAMS)
    assert plans[-1] == Plan(2, 1, alone=False, decodes=True, confined=threads == 1)
    for plan in plans:
        assert (plan.lanes, plan.max_batch, plan.decodes) == (plan.workers + 1, 1, True)
        assert plan.alone == (plan.workers > 1)


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError(), ReleaseFaultError), (RuntimeError("broken"), ReleaseRejectedError)]
)
def test_what_cannot_be_compiled_names_its_step(
    release: Release, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type
) -> None:
    """Memory comes back, a network that no compiler takes does not change."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "OpenVinoSession", fail)
    with pytest.raises(kind) as caught:
        OpenVinoBackend(threads=1, precision="fp32").load(release)
    assert caught.value.step == "load"


def test_a_network_of_one_size_is_served_as_it_is(
    make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]
) -> None:
    """What has no free sizes to untangle loads and answers; a form for its size is made, one for another is not."""
    onnx = pytest.importorskip("onnx")
    network = onnx.load_model_from_string(tiny_network().tobytes())
    for value, sizes in ((network.graph.input[0], (1, 64, 96, 3)), (network.graph.output[0], (1, 6, 6))):
        for dimension, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dimension.dim_value = size
    files = {"model.onnx": np.frombuffer(network.SerializeToString(), np.uint8)}
    session = OpenVinoBackend(threads=1, precision="fp32").load(make_release(files=files))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    before = session.infer(image, 0)
    assert before.shape == (1, 6, 6)
    assert session.warm((64, 96))
    assert np.array_equal(session.infer(image, 0), before)


def test_signals_survive_the_end_of_a_backend(release: Release) -> None:
    """The runtime outlives its backends: what it has set up for signals stays valid, and a signal is no crash."""
    OpenVinoBackend(threads=1, precision="auto").load(release).close()
    gc.collect()
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_the_runtime_reports_to_nobody() -> None:
    """Its model converter, which calls home as soon as it is imported, is not; a new process sees it as a user does."""
    code = """
import sys
from models.engine.backends.openvino import OpenVinoBackend
OpenVinoBackend(threads=1, precision="fp32")
print([name for name, module in sys.modules.items() if module and ("telemetry" in name or "tools.ovc" in name)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("library", "trimmed"), [({"malloc_trim": True}, [0]), ({}, [])])
def test_closing_hands_freed_memory_back(
    release: Release, monkeypatch: pytest.MonkeyPatch, library: dict[str, bool], trimmed: list[int]
) -> None:
    """The C library is told to, once a session; one that cannot be told is no error."""
    told: list[int] = []
    session = OpenVinoBackend(threads=1, precision="fp32").load(release)
    names = dict.fromkeys(library, told.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(**names))
    session.close()
    assert told == trimmed


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Converting input model\nstd::bad_alloc")])
def test_a_lack_of_memory_condemns_no_release(
    error: Exception, make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]
) -> None:
    """However OpenVINO tells of it, it passes: the same bytes may be loaded later."""

    class Exhausted:
        def read_model(self, *_: object) -> None:
            raise error

    backend = OpenVinoBackend(precision="fp32", threads=1)
    backend._core = Exhausted()
    with pytest.raises(ReleaseFaultError, match="no memory"):
        backend.load(make_release(files={"model.onnx": tiny_network()}))


@pytest.mark.parametrize(("threads", "expected"), [(1, ["give way", "compile"]), (2, ["compile"])])
def test_threads_that_only_compile_give_way_first(
    release: Release, monkeypatch: pytest.MonkeyPatch, threads: int, expected: list[str]
) -> None:
    """The runtime compiles on threads that it has kept, which where there are several may answer, too."""
    events: list[str] = []
    monkeypatch.setattr(module, "loaders_give_way", lambda: events.append("give way"))
    monkeypatch.setattr(module, "OpenVinoSession", lambda *_, **__: events.append("compile"))
    OpenVinoBackend(threads=threads, precision="fp32").load(release)
    assert events == expected
