"""The raw rate of a GPU: one batch that lies on it already, run over and over by the runtime alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.engine.backends.onnxruntime_gpu import INPUT, OUTPUT, TENSORRT, choose, load_tensorrt, providers
from models.engine.backends.torch_network import look, place, rebuild
from models.engine.backends.torch_queue import GPU_PLANS, CudaQueue, gpu_memory

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from models.engine.backends.torch_queue import Queue
    from models.types import Release

BURST = 8
"""Raw runs between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Images a second, and how they were run."""

    what: str
    lanes: int
    batch: int
    rate: float


def timed(run: Callable[[], int], seconds: float) -> float:
    """Return how many a second ``run`` does, which returns how many it has done; ``seconds`` > 0 long."""
    run()
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        done += run()
    return done / took


def raw_torch(release: Release, shape: tuple[int, int], batch: int, queue: Queue, *, half: bool) -> Callable[[], int]:
    """Return a burst of recorded runs of ``batch`` images of ``shape`` (height, width) that lie on the device."""
    import torch  # noqa: PLC0415 - only where torch is measured

    network = place(rebuild(release.files, release.contract), queue.device, half=half)
    with queue.entered():
        images = torch.zeros((batch, *shape, 3), dtype=torch.uint8, device=queue.device)
    queue.finish()
    recording = queue.record(lambda: look(network, images))

    def burst() -> int:
        with queue.entered():
            for _ in range(BURST):
                recording.replay()
            queue.finish()
        return BURST * batch

    return burst


def raw_onnxruntime(
    release: Release, shape: tuple[int, int], batch: int, queue: Queue, wanted: list[tuple[str, dict[str, str]]]
) -> Callable[[], int]:
    """Return a burst of runs of ``batch`` images that lie on the device, by the providers ``wanted``."""
    import onnxruntime  # noqa: PLC0415 - only where it is measured

    session = onnxruntime.InferenceSession(release.files["model.onnx"].tobytes(), providers=wanted)
    kind = queue.device.type
    images = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((batch, *shape, 3), np.uint8), kind, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, images)
    binding.bind_output(OUTPUT, kind, 0)

    def burst() -> int:
        for _ in range(BURST):
            session.run_with_iobinding(binding)
        queue.finish()
        return BURST * batch

    return burst


def raw_rates(release: Release, shape: tuple[int, int], options: argparse.Namespace) -> list[Rate]:
    """Return the raw rate of every batch size, the best first."""
    tensorrt = options.backend == "onnxruntime" and load_tensorrt()
    found = []
    for batch in sorted({plan.max_batch for plan in GPU_PLANS}):
        queue = CudaQueue()
        if options.backend == "torch":
            burst = raw_torch(release, shape, batch, queue, half=options.precision != "fp32")
        else:
            told = choose(options.precision, tensorrt=tensorrt, memory=gpu_memory(1.0), engines=options.engines)
            plan = next(plan for plan in GPU_PLANS if plan.lanes == 1)
            wanted = providers(told, release.contract, plan, digest=release.digest, handle=queue.handle)
            burst = raw_onnxruntime(release, shape, batch, queue, wanted)
        what = f"raw {TENSORRT if tensorrt else options.backend}"
        found.append(Rate(what, 1, batch, timed(burst, options.seconds)))
    return sorted(found, key=lambda rate: -rate.rate)
