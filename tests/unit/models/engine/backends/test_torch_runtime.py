"""What is torch's own; the protocol's promises are held against it in ``test_backend.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.backends.backend import Plan
from models.engine.backends.torch_fake_queue import FakeQueue
from models.engine.backends.torch_queue import GPU_PLANS
from models.engine.backends.torch_runtime import TorchBackend
from models.errors import BackendError, ReleaseFaultError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_weights: Callable[..., dict[str, np.ndarray]]) -> Release:
    """Return a release of the tiny network with a raw head."""
    return make_release(files=tiny_weights(), head="raw", imgsz=96)


def on_fake_queues() -> TorchBackend:
    """Return a backend with the lanes of a GPU, on the CPU."""
    backend = TorchBackend(threads=2)
    backend._make_queue = FakeQueue
    return backend


def test_lanes_and_threads_never_exceed_what_may_be_used(release: Release) -> None:
    """Lanes times the threads of each stay within what the replica may use."""
    for threads in (1, 2, 5, 40):
        backend = TorchBackend(threads=threads)
        for plan in backend.plans():
            lanes = backend.load(release, plan)._lanes
            assert len(lanes) == plan.lanes
            assert sum(lane._threads for lane in lanes) <= threads


def test_a_raw_head_comes_through(release: Release) -> None:
    """Four coordinates and a score a class for each anchor."""
    answer = TorchBackend(threads=1).load(release).infer(np.zeros((1, 64, 96, 3), np.uint8), 0)
    assert answer.shape == (1, 7, 8 * 12 + 4 * 6 + 2 * 3)


def test_a_gpu_drives_large_batches() -> None:
    """Several sizes are tried, the largest first; a shape costs what its graphs and outputs take, a CPU nothing."""
    assert on_fake_queues().plans() == GPU_PLANS
    assert {plan.max_batch for plan in GPU_PLANS} == {1, 4, 8, 16, 32}


def test_what_a_shape_costs(release: Release) -> None:
    """Graphs and outputs of every lane on a GPU, more for more images; nothing on a CPU."""
    assert TorchBackend(threads=1).load(release).shape_cost((96, 96)) == 0
    costs = [on_fake_queues().load(release, plan).shape_cost((96, 96)) for plan in (Plan(1, 1), Plan(1, 8), Plan(2, 8))]
    assert 0 < costs[0] < costs[1] < costs[2]
    backend = on_fake_queues()
    assert costs[1] * 2 == costs[2]
    assert backend.load(release, Plan(1, 8)).shape_cost((32, 32)) < costs[1]


def test_without_a_gpu_it_is_refused() -> None:
    """Asking for a GPU never silently serves on the CPU; the message says what to do."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match="gpus is set"):
        TorchBackend(threads=1, gpu=True)


def test_batches_that_do_not_fit_never_reach_the_buffers(release: Release) -> None:
    """More images than planned, longer sides and other types are bugs of the caller."""
    session = on_fake_queues().load(release, Plan(1, 2))
    for batch in (
        np.zeros((3, 96, 96, 3), np.uint8),
        np.zeros((1, 128, 96, 3), np.uint8),
        np.zeros((1, 40, 96, 3), np.uint8),
        np.zeros((0, 96, 96, 3), np.uint8),
        np.zeros((96, 96, 3), np.uint8),
        np.zeros((1, 96, 96, 3), np.float32),
    ):
        with pytest.raises(BackendError, match="This is a bug"):
            session.infer(batch, 0)


class BrokenQueue(FakeQueue):
    """Has no memory left, at once or when it records."""

    at_once = True

    def host(self, size: int, dtype: object) -> object:
        """Fail at once, if so asked."""
        if self.at_once:
            self.fail()
        return super().host(size, dtype)

    def record(self, run: object) -> object:  # noqa: ARG002 - it never runs
        """Fail."""
        self.fail()

    def fail(self) -> None:
        """Raise what torch raises."""
        msg = "CUDA out of memory"
        raise torch.OutOfMemoryError(msg)


def test_a_full_gpu_is_a_fault_of_the_surroundings(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """While loading it is tried again later; while recording the shape goes on unrecorded."""
    backend = on_fake_queues()
    backend._make_queue = BrokenQueue
    with pytest.raises(ReleaseFaultError) as caught:
        backend.load(release)
    assert caught.value.step == "load"
    monkeypatch.setattr(BrokenQueue, "at_once", False)
    session = backend.load(release, Plan(2, 1))
    with pytest.raises(BackendError, match="still run"):
        session.warm((96, 96))
    assert session.infer(np.zeros((1, 96, 96, 3), np.uint8), 1).shape[0] == 1
