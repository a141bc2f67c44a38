"""LitServe + Ultralytics: ``litserve_ultralytics.py PORT MODEL BATCH``; posts a JPEG to /predict, gets JSON."""

import sys
from typing import Annotated

import cv2
import litserve
import numpy as np
import torchvision_shim  # noqa: F401 - before ultralytics
from fastapi import Body
from ultralytics import YOLO

port, path, most = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Detector(litserve.LitAPI):
    """One worker process that runs the network."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the network."""
        self.model = YOLO(path, task="detect")

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> np.ndarray:
        """Decode the JPEG."""
        return cv2.imdecode(np.frombuffer(request, np.uint8), cv2.IMREAD_COLOR)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Leave pictures of several sizes a list: LitServe would stack them, which fails."""
        return inputs

    def predict(self, image: np.ndarray | list[np.ndarray]) -> object:
        """Answer one picture, or several where LitServe batches."""
        return self.model.predict(image, verbose=False)

    def encode_response(self, output: object) -> object:
        """Return what FastAPI turns into JSON."""
        return (output if most > 1 else output[0]).summary()


if __name__ == "__main__":
    api = Detector(max_batch_size=most, batch_timeout=0.01 if most > 1 else 0.0)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=port, generate_client_file=False)
