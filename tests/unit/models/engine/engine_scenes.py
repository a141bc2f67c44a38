"""An engine on the fake backend: pictures, what must be seen in them, and a gate that holds its calls."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from models.engine.backends.fake import FakeBackend
from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.types import Detections, DetectOptions, RequestContext

if TYPE_CHECKING:
    from models.engine.engine import Engine
    from models.types import Release

CONTEXT = RequestContext("test", deadline=float("inf"))
PLAIN = DetectOptions()


def png(seed: int, height: int = 48, width: int = 64) -> bytes:
    """Return a random picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def expected(release: Release, data: bytes, options: DetectOptions = PLAIN) -> Detections:
    """Return what ``release`` sees in ``data`` when nothing else is going on."""
    tensor, placement = letterbox(decode(data), release.contract)
    output = FakeBackend().load(release).infer(tensor[None], 0)[0]
    return postprocess(output, placement, release.contract, options.thresholds(release.thresholds), options.classes)


def equal(one: Detections, other: Detections) -> bool:
    """Return whether two answers are the same to the last bit."""
    pairs = ((one.boxes, other.boxes), (one.scores, other.scores), (one.classes, other.classes))
    return all(np.array_equal(a, b) for a, b in pairs)


async def serve(engine: Engine, release: Release, generation: int = 1) -> None:
    """Prepare and flip."""
    await engine.prepare(release)
    engine.flip(release.digest, generation)


class Gate:
    """A sleep that lasts until the gate is opened, and says when somebody waits at it."""

    def __init__(self) -> None:
        """Start open, so that releases can be prepared."""
        self.reached, self.open = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, seconds: float) -> None:
        """Wait if there is time to spend."""
        if seconds:
            self.reached.set()
            assert self.open.wait(20)

    def shut(self) -> None:
        """Let the next call wait."""
        self.reached.clear()
        self.open.clear()

    async def entered(self) -> None:
        """Wait until a call waits."""
        assert await asyncio.to_thread(self.reached.wait, 20)


async def queue_of(engine: Engine, length: int) -> None:
    """Wait until so many images wait, decoded."""
    for _ in range(2000):
        if engine._batcher.queued == length and engine._path._decoding == 0:
            return
        await asyncio.to_thread(threading.Event().wait, 0.005)
    pytest.fail(f"{engine.queued} images wait instead of {length}")
