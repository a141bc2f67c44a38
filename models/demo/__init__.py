"""The embedded demo detector: a renderer of labelled checkout trays, a training recipe, two trained versions.

Importing this package is cheap: the renderer (cv2, numpy) and the recipe (torch, ultralytics) are its submodules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_HERE: Final = Path(__file__).resolve().parent

MODEL_NAME: Final = "checkout"
SAMPLE_TRAY: Final = _HERE / "sample-tray.jpg"
GOLDEN_DIR: Final = _HERE / "golden"


def weights_path(version: int) -> Path:
    """Where the weights of a demo version lie.

    Args:
        version: 1 or 2.

    Returns:
        Path of the .pt file.
    """
    return _HERE / "weights" / f"{MODEL_NAME}-{version}.pt"


def metrics(version: int) -> dict[str, Any]:
    """What the recipe measured for a demo version.

    Args:
        version: 1 or 2.

    Returns:
        `map50_95` and `map50` (0-1) on the held-out scenes, `epochs`, `scenes`, `imgsz` (pixels), `seed`, `date`.
    """
    entries: dict[str, dict[str, Any]] = json.loads((_HERE / "weights" / "metrics.json").read_text(encoding="utf-8"))
    return entries[str(version)]
