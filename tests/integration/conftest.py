"""One real service for the whole suite: two replicas of the demo detector, with fault injection allowed."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages, so what they share is found beside them.
sys.path.insert(0, str(Path(__file__).parent))

from coco import coco
from running import service
from scratch import scratch_model

__all__ = ["coco", "scratch_model", "service"]
