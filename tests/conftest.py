"""What holds for every test: where the shared folder is, and how hypothesis searches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A deadline an example would measure the machine, not the code.
# CI draws the same examples every time: a change is judged by what it changed. Everybody else searches further.
settings.register_profile(
    "steelyard", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steelyard")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of weights and photographs, or skip the test where it is absent."""
    folder = Path(os.environ.get("STEELYARD_SHARED", "../shared")).absolute()
    if not folder.is_dir():
        pytest.skip("STEELYARD_SHARED names no folder: a stranger's clone has no shared weights and photographs")
    return folder
