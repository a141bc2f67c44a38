"""Export weights with Ultralytics for the peers: ``export.py WEIGHTS FORMAT FOLDER`` prints the exported path.

FORMAT is ``openvino`` or ``onnx``; the export takes any shape, so that photographs run in their own (``rect``), which
is the faster way to serve them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torchvision_shim  # noqa: F401 - before ultralytics
from ultralytics import YOLO

weights, kind, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
copy = Path(shutil.copy(weights, folder / weights.name))
print(YOLO(copy).export(format=kind, dynamic=True, nms=False))
