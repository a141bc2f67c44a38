"""Ray Serve as its documentation shows it: ``ray_serve_ultralytics.py PORT MODEL``; default proxy, @serve.batch."""

from __future__ import annotations

import signal
import sys
import tempfile

import cv2
import numpy as np
import ray
from ray import serve
from starlette.requests import Request  # noqa: TC002 - Ray Serve reads the annotation

port, path = int(sys.argv[1]), sys.argv[2]


@serve.deployment(max_ongoing_requests=64)
class Detector:
    """One replica with one network."""

    def __init__(self) -> None:
        """Load the network."""
        import torchvision_shim  # noqa: F401, PLC0415 - before ultralytics, in the replica
        from ultralytics import YOLO  # noqa: PLC0415 - in the replica

        self.model = YOLO(path, task="detect")

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def detect(self, bodies: list[bytes]) -> list[list[dict[str, object]]]:
        """Answer a batch of pictures."""
        images = [cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) for body in bodies]
        return [result.summary() for result in self.model.predict(images, verbose=False)]

    async def __call__(self, request: Request) -> list[dict[str, object]]:
        """Answer one picture."""
        return await self.detect(await request.body())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        here = {"env_vars": {"PYTHONPATH": sys.path[0]}}
        ray.init(_temp_dir=folder, include_dashboard=False, runtime_env=here, num_cpus=4)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(Detector.bind())
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.pause()
