"""BentoML + Ultralytics: ``bentoml_ultralytics.py PORT MODEL``; posts a JPEG to /detect, gets JSON."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    port, path = sys.argv[1:]
    os.environ["BENCH_MODEL"] = path
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", f"{Path(__file__).stem}:Detector"]
    options = ["--host", "127.0.0.1", "--port", port, "--working-dir", str(Path(__file__).parent)]
    os.execv(command[0], [*command, *options])  # noqa: S606 - BentoML is started by its own command

import bentoml
import cv2
import numpy as np
import torchvision_shim  # noqa: F401 - before ultralytics
from ultralytics import YOLO


@bentoml.service(workers=1, http={"host": "127.0.0.1"}, metrics={"enabled": False})
class Detector:
    """One worker process with one network."""

    def __init__(self) -> None:
        """Load the network."""
        self.model = YOLO(os.environ["BENCH_MODEL"], task="detect")

    @bentoml.api(route="/detect")
    def detect(self, picture: Path, /) -> list[dict[str, object]]:
        """Answer one picture, which BentoML has put into a file."""
        image = cv2.imdecode(np.fromfile(picture, np.uint8), cv2.IMREAD_COLOR)
        return self.model.predict(image, verbose=False)[0].summary()
