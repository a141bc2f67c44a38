"""The fault suite attacks the same kind of service that the integration suite uses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from running import service

__all__ = ["service"]
