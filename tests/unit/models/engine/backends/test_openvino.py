"""The openvino backend on a real, tiny network."""

from __future__ import annotations

import gc
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto

from models.engine.backends.backend import Plan
from models.engine.backends.openvino import OpenVinoBackend
from models.errors import BackendError, ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release

pytest.importorskip("openvino")

BATCH = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]) -> Release:
    """Return a release of the tiny network."""
    return make_release(files={"model.onnx": tiny_network()})


@pytest.fixture
def backend() -> OpenVinoBackend:
    """Return the backend, in fp32 with two threads."""
    return OpenVinoBackend(threads=2, precision="fp32")


def test_answers_do_not_depend_on_company(backend: OpenVinoBackend, release: Release) -> None:
    """Alone, in a batch and on another lane an image gets the same answer to the last bit."""
    session = backend.load(release, Plan(2, 5))
    together = session.infer(BATCH, 0)
    assert together.shape == (5, 6, 6)
    assert together.dtype == np.float32
    for index in range(5):
        assert np.array_equal(session.infer(BATCH[index : index + 1], 1)[0], together[index])


def test_lanes_run_side_by_side(backend: OpenVinoBackend, release: Release) -> None:
    """Calls on different lanes at once give what they give one after the other; outputs belong to the caller."""
    session = backend.load(release, Plan(2, 1))
    expected = [session.infer(image[None], 0) for image in BATCH]
    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(lambda lane: [session.infer(i[None], lane) for i in BATCH], lane) for lane in (0, 1)]
    for lane in lanes:
        assert all(np.array_equal(one, other) for one, other in zip(lane.result(), expected, strict=True))


def test_warm_and_forget_keep_the_answers(backend: OpenVinoBackend, release: Release) -> None:
    """Warming a shape, forgetting it and meeting a new one move no box by half a pixel."""
    session = backend.load(release)
    cold = session.infer(BATCH[:1], 0)
    session.warm((64, 96))
    session.warm((64, 96))
    assert np.allclose(session.infer(BATCH[:1], 0), cold, atol=1e-3)
    session.forget((64, 96))
    session.forget((64, 96))
    assert np.array_equal(session.infer(BATCH[:1], 0), cold)
    assert session.infer(np.zeros((1, 32, 64, 3), np.uint8), 0).shape == (1, 2, 6)
    assert session.shape_cost((64, 96)) >= 0


def test_non_finite_weights_come_through(
    backend: OpenVinoBackend, make_release: Callable, tiny_network: Callable
) -> None:
    """NaN is not hidden by the runtime: the engine gets to see it."""
    session = backend.load(make_release(files={"model.onnx": tiny_network(bias=float("nan"))}))
    assert np.isnan(session.infer(BATCH[:1], 0)).all()


def test_bad_files_are_rejected_for_good(
    backend: OpenVinoBackend, make_release: Callable, tiny_network: Callable
) -> None:
    """No file, rubbish, a cut file and a network of other inputs fail at step load, permanently."""
    whole = tiny_network()
    for files in (
        {},
        {"model.onnx": np.frombuffer(b"rubbish", np.uint8)},
        {"model.onnx": whole[: len(whole) // 2]},
        {"model.onnx": tiny_network(kind=TensorProto.FLOAT)},
    ):
        with pytest.raises(ReleaseRejectedError) as caught:
            backend.load(make_release(files=files))
        assert caught.value.step == "load"


def test_a_failing_call_is_a_backend_error(backend: OpenVinoBackend, release: Release) -> None:
    """A batch that the network cannot take fails alone; the session goes on."""
    session = backend.load(release)
    with pytest.raises(BackendError):
        session.infer(np.zeros((1, 64, 96, 4), np.uint8), 0)
    assert session.infer(BATCH[:1], 0).shape == (1, 6, 6)


def test_close_is_idempotent_and_final(backend: OpenVinoBackend, release: Release) -> None:
    """After close nothing runs and nothing is warmed."""
    session = backend.load(release)
    session.close()
    session.close()
    session.forget((64, 96))
    with pytest.raises(BackendError, match="closed"):
        session.infer(BATCH[:1], 0)


def test_plans_start_with_a_lane_for_each_thread(backend: OpenVinoBackend) -> None:
    """On a CPU lanes of batch one are tried first, one lane with all threads last."""
    assert backend.plans()[0] == Plan(2, 1)
    assert backend.plans()[-1] == Plan(1, 1)


def test_precision_follows_setting_and_processor() -> None:
    """fp32 is kept when asked for; auto takes bf16 only where the processor has it."""
    assert OpenVinoBackend(threads=1, precision="fp32").precision == "f32"
    assert OpenVinoBackend(threads=1, precision="auto").precision in {"bf16", "f32"}


def test_only_fp32_pays_for_shapes(release: Release) -> None:
    """Static forms exist in fp32 alone, where they answer as the dynamic form does."""
    single = OpenVinoBackend(threads=1, precision="fp32").load(release)
    assert single.shape_cost((640, 640)) > 40_000_000
    single.warm((64, 96))
    assert list(single._shapes) == [(64, 96)]
    backend = OpenVinoBackend(threads=1, precision="bf16")
    if backend.precision == "bf16":
        half = backend.load(release)
        half.warm((64, 96))
        assert (half.shape_cost((640, 640)), half._shapes) == (0, {})


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
