"""The lanes of a torch session: image by image on a CPU, recorded batches on a GPU."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.engine.backends.torch_network import CHANNELS, grid, look

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.engine.backends.backend import Shape
    from models.engine.backends.torch_queue import Queue, Recording

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Batch sizes that are recorded: a batch runs in the next larger one, so at most half of a run is in vain."""


class Lane(Protocol):
    """One call in flight at once; ``warm`` and ``forget`` may run beside it."""

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run uint8 (n, h, w, 3) RGB; the answer belongs to the caller."""
        ...

    def warm(self, shape: Shape) -> None:
        """Make the first batch of ``shape`` as fast as later ones."""
        ...

    def forget(self, shape: Shape) -> None:
        """Undo ``warm``."""
        ...


class CpuLane:
    """Fulfils Lane image by image: an answer cannot depend on its company, to the last bit."""

    def __init__(self, network: Any, threads: int) -> None:
        """Run ``network``, this lane's own, with ``threads`` >= 1."""
        import torch  # noqa: PLC0415 - a service loads only the runtime it uses

        self._torch: Any = torch
        self._network = network
        self._threads = threads

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the images one after the other."""
        torch = self._torch
        # The number is a property of the calling thread, and lanes are not bound to threads.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            images = torch.from_numpy(np.require(batch, requirements=("C", "W")))
            outputs = [look(self._network, images[i : i + 1]).numpy() for i in range(len(batch))]
        return np.concatenate(outputs)

    def warm(self, shape: Shape) -> None:
        """Do nothing: torch keeps nothing of a shape on a CPU."""

    def forget(self, shape: Shape) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """One recorded batch size; ``read`` is the memory that it reads besides the weights and the lane's images."""

    recording: Recording
    read: tuple[Any, ...]


class GpuLane:
    """Fulfils Lane with a graph a shape and bucket, all reading one buffer of images.

    A batch is copied into pinned memory and from there into the front of the buffer; what an earlier batch has left
    behind it fills the bucket up, and its answers are thrown away. Shapes without a graph run as they are.

    Which kernels a bucket gets is the libraries' choice: answers of one image may differ in the last digits of fp16
    between buckets. Within a bucket they do not depend on the company.
    """

    def __init__(self, network: Any, twin: Callable[[Any], Any], queue: Queue, *, max_batch: int, imgsz: int) -> None:
        """Allocate the buffers; raises RuntimeError.

        Args:
            network: on the queue's device, this lane's own.
            twin: makes another one over the same weights.
            queue: this lane's own.
            max_batch: images a call at most, >= 1.
            imgsz: pixels of a tensor's long side.

        """
        import torch  # noqa: PLC0415 - a service loads only the runtime it uses

        self._torch: Any = torch
        self._network = network
        self._recorder = twin(network)
        self._queue = queue
        self._buckets = buckets(max_batch)
        largest = self._buckets[-1] * imgsz * imgsz * CHANNELS
        self._inlet = queue.host(largest, torch.uint8)
        self._outlet = queue.host(0, torch.float32)
        with queue.entered():
            self._images = torch.zeros(largest, dtype=torch.uint8, device=queue.device)
        queue.finish()
        self._recorded: dict[Shape, dict[int, _Bucket]] = {}

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Replay the graph of the batch's bucket, or run it as it is. Raises RuntimeError."""
        count, shape = len(batch), (batch.shape[1], batch.shape[2])
        size = self._buckets[bisect.bisect_left(self._buckets, count)]
        bucket = self._recorded.get(shape, {}).get(size)
        inlet, images = self._inlet[: batch.size], self._images[: batch.size]
        np.copyto(inlet.numpy().reshape(batch.shape), batch)
        queue = self._queue
        with queue.entered():
            images.copy_(inlet, non_blocking=True)
            if bucket is None:
                output = look(self._network, images.view(batch.shape))
            else:
                bucket.recording.replay()
                output = bucket.recording.output[:count]
            if self._outlet.numel() < output.numel():
                self._outlet = queue.host(output.numel(), self._torch.float32)
            outlet = self._outlet[: output.numel()]
            outlet.view(output.shape).copy_(output, non_blocking=True)
            queue.finish()
        answer: NDArray[np.float32] = outlet.numpy().reshape(tuple(output.shape)).copy()
        return answer

    def warm(self, shape: Shape) -> None:
        """Record every bucket of ``shape``. Raises RuntimeError."""
        if shape in self._recorded:
            return
        recorded = {}
        for size in reversed(self._buckets):  # the largest first: the others compute in the memory that it has taken
            images = self._images[: size * math.prod(shape) * CHANNELS].view(size, *shape, CHANNELS)

            def run(images: Any = images) -> Any:
                return look(self._recorder, images)

            recording = self._queue.record(run)
            recorded[size] = _Bucket(recording, grid(self._recorder))
        self._recorded[shape] = recorded

    def forget(self, shape: Shape) -> None:
        """Drop the graphs of ``shape``; a call that replays one keeps it until it returns."""
        self._recorded.pop(shape, None)


def buckets(max_batch: int) -> tuple[int, ...]:
    """Return the batch sizes to record, rising, the last one being ``max_batch`` >= 1."""
    return (*(size for size in BUCKETS if size < max_batch), max_batch)
