"""Makes ``import torchvision`` work beside a CPU build of torch, as Steelyard does for itself; import it first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(YOLO_AUTOINSTALL="false", YOLO_OFFLINE="true")
sys.path.append(str(Path(__file__).resolve().parents[2]))

from models.torchvision_ops import ensure_torchvision_ops

ensure_torchvision_ops()
