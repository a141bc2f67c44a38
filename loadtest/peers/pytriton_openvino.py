"""PyTriton (Triton server) with OpenVINO and dynamic batching: ``pytriton_openvino.py PORT MODEL.xml``.

Takes JPEGs as BYTES and answers JSON. Triton forms the batches; the pictures of one run side by side, a stream a core.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig

import cv2
import numpy as np
import openvino
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

port, path = int(sys.argv[1]), sys.argv[2]
cores = len(os.sched_getaffinity(0))
cv2.setNumThreads(1)
compiled = openvino.Core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": cores})
queue = openvino.AsyncInferQueue(compiled, cores)


def letterbox(data: bytes, size: int = 640, stride: int = 32) -> tuple[np.ndarray, float, int, int]:
    """Return the tensor float32 (1, 3, h, w), the scale, and the border on the left and above."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    new = round(width * scale), round(height * scale)
    image = cv2.resize(image, new) if (width, height) != new else image
    right, below = (-new[0]) % stride, (-new[1]) % stride
    left, above = right // 2, below // 2
    sides = above, below - above, left, right - left
    image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    return cv2.dnn.blobFromImage(image, 1 / 255, swapRB=True), scale, left, above


@batch
def detect(image: np.ndarray) -> dict[str, np.ndarray]:
    """Answer a batch of BYTES (n, 1)."""
    answers: list[bytes] = [b""] * len(image)

    def keep(request: openvino.InferRequest, place: tuple[int, float, int, int]) -> None:
        index, scale, left, above = place
        rows = request.get_output_tensor().data[0]
        rows = rows[rows[:, 4] >= 0.25].copy()  # noqa: PLR2004 - the detector's usual threshold
        rows[:, [0, 2]] = (rows[:, [0, 2]] - left) / scale
        rows[:, [1, 3]] = (rows[:, [1, 3]] - above) / scale
        answers[index] = json.dumps(rows.round(5).tolist()).encode()

    queue.set_callback(keep)
    for index, element in enumerate(image[:, 0]):
        tensor, *place = letterbox(element)
        queue.start_async({0: tensor}, (index, *place))
    queue.wait_all()
    return {"boxes": np.array(answers, dtype=object)[:, None]}


if __name__ == "__main__":
    # Triton's embedded interpreter must be this one, and not another of the same version number on the machine.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    addresses = dict.fromkeys(("http_address", "grpc_address", "metrics_address"), "127.0.0.1")
    config = TritonConfig(**addresses, http_port=port, grpc_port=port + 1, metrics_port=port + 2)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="detector",
            infer_func=detect,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="boxes", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
