"""FastAPI + Ultralytics as one writes it: ``fastapi_ultralytics.py PORT MODEL``; posts a JPEG, gets JSON."""

from __future__ import annotations

import sys
from typing import Annotated

import cv2
import numpy as np
import torchvision_shim  # noqa: F401 - before ultralytics
import uvicorn
from fastapi import Body, FastAPI
from ultralytics import YOLO

port, path = int(sys.argv[1]), sys.argv[2]
model = YOLO(path, task="detect")
app = FastAPI()


@app.post("/detect")
def detect(picture: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, object]]:
    """Answer one picture on one of FastAPI's worker threads."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    return model.predict(image, verbose=False)[0].summary()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
