"""The fault suite attacks a service like that of the integration suite; some faults need only a rollout without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

TESTS = Path(__file__).parents[1]
# Test folders are no packages, so what they share is found beside them.
sys.path[:0] = [str(Path(__file__).parent), str(TESTS / "integration"), str(TESTS / "unit" / "serve")]

from running import Service, start, stop  # noqa: E402 - found on the path that stands only now

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a running service that every fault is done to.

    What judges a version by times is lenient or off: these tests take a machine's processes away while it measures.
    """
    folder = tmp_path_factory.mktemp("service")
    started = start(
        folder / "home",
        folder / "serve.log",
        "--replicas",
        "2",
        STEELYARD_ALLOW_FAULT_INJECTION="true",
        STEELYARD_POLL_INTERVAL_S="0.5",
        STEELYARD_LATENCY_FACTOR="100",
        STEELYARD_TRIAL_IMAGES="20",
        STEELYARD_PROBATION_S="0",
    )
    try:
        yield started
    finally:
        stop(started)


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a running service that judges versions as services do, on fewer images: every gate, every probation."""
    folder = tmp_path_factory.mktemp("judged")
    started = start(
        folder / "home",
        folder / "serve.log",
        "--replicas",
        "2",
        STEELYARD_ALLOW_FAULT_INJECTION="true",
        STEELYARD_POLL_INTERVAL_S="0.5",
        STEELYARD_TRIAL_IMAGES="10",
    )
    try:
        yield started
    finally:
        stop(started)
