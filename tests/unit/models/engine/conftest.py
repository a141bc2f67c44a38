"""What the engine's tests share: releases, pictures, and a loop whose time is made of numbers."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from models.engine.backends.backend import Plan
from models.types import Contract, Release, RequestContext, Thresholds

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parent))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to its next timer instead of waiting for it; for tests without threads."""

    now = 0.0

    def time(self) -> float:
        """Return the virtual seconds."""
        return self.now

    def _run_once(self) -> None:
        pending = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if pending and not self._ready:
            self.now = max(self.now, min(pending))
        super()._run_once()


@pytest.fixture(scope="session")
def make_release() -> Callable[..., Release]:
    """Return a maker of releases that need no files."""

    def make(letter: str = "a", version: str = "1", **changes: object) -> Release:
        contract = {"names": ("apple", "bread", "cheese"), "stride": 32, "imgsz": 64, "head": "end2end"}
        contract |= {key: changes.pop(key) for key in list(changes) if key in {*contract, "dynamic"}}
        given = {"thresholds": Thresholds(), "files": {}} | changes
        return Release("till", version, letter * 64, Contract("detect", **contract), **given)

    return make


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """Return a maker of PNG bytes: random pixels of that height, width and seed."""

    def make(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def context() -> RequestContext:
    """Return a context whose deadline never comes."""
    return RequestContext("test", deadline=float("inf"))


@pytest.fixture(scope="session")
def virtual_loop() -> Callable[[], VirtualLoop]:
    """Return the kind of loop that jumps to its next timer."""
    return VirtualLoop


@pytest.fixture(scope="module", params=["decoders", "lanes"])
def way(request: pytest.FixtureRequest) -> Callable[[int, int], Plan]:
    """Return a maker of plans from lanes and batch: decoders fill the batches, or lanes decode one by one."""
    if request.param == "decoders":
        return Plan
    return lambda lanes, _max_batch: Plan(lanes, 1, alone=True, decodes=True)
