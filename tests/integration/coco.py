"""The two COCO checkpoints of the shared folder, registered once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.weights.fake_registry import FakeRegistry
from models.weights.register import register

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = {"yolo26n": "1", "yolov8n": "2"}
"""Checkpoint -> its version of the model ``coco``."""


def checkpoint(shared: Path, name: str) -> Path:
    """Return the checkpoint's path, or skip where it is absent."""
    path = shared / "weights" / f"{name}-coco.pt"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder that STEELYARD_SHARED names")
    return path


@pytest.fixture(scope="session")
def coco(shared: Path) -> FakeRegistry:
    """Return a registry that holds the two COCO checkpoints as versions of ``coco``."""
    registry = FakeRegistry()
    for name in VERSIONS:
        assert register(registry, checkpoint(shared, name), model="coco").created
    return registry
