"""The fault suite attacks the same kind of service that the integration suite uses, and the unit tests' rollout."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Test folders are no packages, so what they share is found beside them.
sys.path[:0] = [str(Path(__file__).parent), str(TESTS / "integration"), str(TESTS / "unit" / "serve")]

from running import service  # noqa: E402 - found on the path that stands only now

__all__ = ["service"]
