"""Replicas come and go while the registry is away: whoever asks for detections notices nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import running
from clients import Clients
from outage import registry_down

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {
    "STEELYARD_BACKEND": "fake",
    "STEELYARD_FAKE_SERVICE_S": "0.05",
    "STEELYARD_LANES": "1",
    "STEELYARD_MAX_BATCH": "1",
    "STEELYARD_MIN_REPLICAS": "1",
    "STEELYARD_MAX_REPLICAS": "2",
    "STEELYARD_SCALE_DOWN_AFTER_S": "8",
}
FULL = 8
"""Clients without pause, as many as fill a replica of 20 images a second."""


def test_a_fleet_grows_and_shrinks_without_its_registry(tmp_path: Path) -> None:
    """A second replica starts from what the fleet and the machine hold, and leaves again; each request is answered."""
    scaled = running.start(tmp_path / "home", tmp_path / "serve.log", **SETTINGS)
    try:
        assert len(scaled.rollout()["replicas"]) == 1
        with registry_down(scaled):
            with Clients(scaled.url, scaled.tray, count=FULL, most_seconds=120.0) as clients:
                scaled.wait_until(lambda rollout: len(rollout["replicas"]) == 2, within_s=90.0)
                time.sleep(3.0)  # the second replica answers in real time
            assert {each.status for each in clients.exchanges} == {200}
            scaled.wait_until(lambda rollout: bool(scaled.detect()) and len(rollout["replicas"]) == 1, within_s=90.0)
            for _ in range(20):
                scaled.detect()
                time.sleep(0.1)  # what has left is gone in real time
    finally:
        running.stop(scaled)
