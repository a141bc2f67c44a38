"""Recorded batches: which graph a batch runs in, and whose memory it touches; on a queue of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.backends.torch_fake_queue import FakeQueue
from models.engine.backends.torch_lanes import BUCKETS, CpuLane, GpuLane, buckets
from models.engine.backends.torch_network import rebuild, twin
from models.types import Contract

if TYPE_CHECKING:
    from collections.abc import Callable

torch = pytest.importorskip("torch")

CONTRACT = Contract("detect", ("apple", "bread", "cheese"), 32, 96, "raw")
BATCH = np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tiny_weights: Callable) -> object:
    """Return the tiny network."""
    return rebuild(tiny_weights(), CONTRACT)


def make_lane(network: object, max_batch: int = 6) -> tuple[GpuLane, FakeQueue]:
    """Return a lane and its queue."""
    queue = FakeQueue()
    return GpuLane(twin(network), twin, queue, max_batch=max_batch, imgsz=96), queue


@given(st.integers(1, 300))
def test_buckets_waste_at_most_half(max_batch: int) -> None:
    """Every batch fits a bucket less than twice its size, and none is larger than the plan's batch."""
    sizes = buckets(max_batch)
    assert sizes[-1] == max_batch
    assert list(sizes) == sorted(set(sizes))
    for count in range(1, min(max_batch, BUCKETS[-1]) + 1):
        assert min(size for size in sizes if size >= count) < 2 * count


def test_warm_batches_are_replayed_and_cold_ones_are_not(network: object) -> None:
    """A recorded shape replays one graph a batch; another shape, and a forgotten one, run as they are."""
    lane, queue = make_lane(network)
    cold = lane.infer(BATCH)
    assert queue.replays == 0
    lane.warm((64, 96))
    lane.warm((64, 96))
    for count in range(1, 7):
        assert np.allclose(lane.infer(BATCH[:count]), cold[:count], rtol=0, atol=1e-4)
        assert queue.replays == count
    lane.infer(BATCH[:, :32])
    lane.forget((64, 96))
    lane.infer(BATCH)
    assert queue.replays == 6


def test_what_fills_a_bucket_up_never_answers(network: object) -> None:
    """Within one bucket an image's answer is the same to the last bit, whatever an earlier batch left behind it."""
    lane, _ = make_lane(network)
    lane.warm((64, 96))
    first = lane.infer(BATCH[:3])
    lane.infer(255 - BATCH)
    assert np.array_equal(lane.infer(BATCH[:3]), first)
    assert lane.infer(BATCH[:3]).shape[0] == 3


def test_shapes_share_the_lanes_memory_without_mixing(network: object) -> None:
    """Graphs of several shapes read the same buffer, each with the grid that it was recorded with."""
    lane, _ = make_lane(network)
    shapes = [(64, 96), (96, 96), (32, 64)]
    batches = [np.random.default_rng(i).integers(0, 256, (2, *shape, 3), np.uint8) for i, shape in enumerate(shapes)]
    expected = [lane.infer(batch) for batch in batches]
    for shape in shapes:
        lane.warm(shape)
    for _ in range(2):
        for batch, answer in zip(batches, expected, strict=True):
            assert np.allclose(lane.infer(batch), answer, rtol=0, atol=1e-4)


def test_a_cpu_lane_computes_with_its_own_threads(network: object) -> None:
    """The number of threads is set for the calling thread, wherever the lane is called from."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            CpuLane(network, threads).infer(BATCH[:1])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_cpu_lane_takes_arrays_that_may_not_be_written(network: object) -> None:
    """Images that another process shares are read-only, and a flipped view is not contiguous."""
    frozen = BATCH[::-1]
    frozen.flags.writeable = False
    assert np.array_equal(CpuLane(network, 1).infer(frozen), CpuLane(network, 1).infer(frozen.copy()))
