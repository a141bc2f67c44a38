"""Run as a program: an engine is given one release after another; prints how its resident set grew.

``python many_swaps.py SWAPS LEAK``; LEAK is KiB that each swap loses on purpose. Prints one JSON object. The network is
a fake one, so that what the engine itself keeps shows to the last release; runtimes are measured by the load tests.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import statistics
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from PIL import Image

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.types import Contract, DetectOptions, Release, RequestContext, Thresholds

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIB = 1024
MIB = 1024 * KIB
NETWORK_BYTES = 4 * MIB
CONTEXT = RequestContext("test", deadline=float("inf"))
CONTRACT = Contract("detect", names=("apple", "bread"), stride=32, imgsz=64, head="end2end")
IMAGES = 20
SLOTS = 3
"""Releases that may be resident: serving, previous, candidate."""


def _release(number: int) -> Release:
    network = np.full(NETWORK_BYTES, number % 256, np.uint8)
    return Release("till", str(number), f"{number:064d}", CONTRACT, Thresholds(), files={"model.onnx": network})


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


async def main(swaps: int, leak: int) -> dict[str, Any]:
    """Return the growth over the second half as a share of its begin, and the releases that are still alive."""
    backend, picture = FakeBackend(), _picture()
    resident: list[int] = []
    lost: list[bytes] = []
    networks: list[weakref.ref[NDArray[np.uint8]]] = []
    async with Engine(backend, EngineSettings(threads=1)) as engine:
        for number in range(1, swaps + 1):
            release = _release(number)
            networks.append(weakref.ref(release.files["model.onnx"]))
            await engine.prepare(release)
            engine.hold()
            engine.flip(release.digest, number)
            engine.resume()
            for _ in range(IMAGES):
                answer = await engine.detect(picture, DetectOptions(), CONTEXT)
                assert answer.release.version == str(number)
            # The fake keeps its sessions for tests that count them.
            while len(backend.sessions) > SLOTS:
                assert backend.sessions.popleft().closed
            lost.append(np.random.default_rng(number).bytes(leak * KIB))
            gc.collect()
            resident.append(psutil.Process().memory_info().rss)
        del release, answer
        gc.collect()
        alive = sum(network() is not None for network in networks)
    half = resident[swaps // 2 :]
    tenth = max(1, len(half) // 10)
    # Medians of the first and the last tenth: single readings move with the allocator.
    start, end = statistics.median(half[:tenth]), statistics.median(half[-tenth:])
    return {"swaps": swaps, "growth": end / start - 1.0, "alive": alive, "start_mib": start / MIB, "end_mib": end / MIB}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))) + "\n")
