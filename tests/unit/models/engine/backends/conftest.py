"""A real network of 200 weights: large enough to prove a runtime, small enough to build in a millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., np.ndarray]:
    """Return a maker of networks: uint8 images (n, h, w, 3) to detections (n, h/32 * w/32, 6), as uint8 ONNX bytes."""

    def make(*, bias: float = 0.0, kind: int = TensorProto.UINT8) -> np.ndarray:
        weights = np.random.default_rng(1).normal(0, 0.05, (6, 3, 3, 3)).astype(np.float32)
        nodes = [
            helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["float", "weights", "bias"], ["map"], strides=[32, 32], pads=[1, 1, 1, 1]),
            helper.make_node("Reshape", ["map", "flat"], ["rows"]),
            helper.make_node("Transpose", ["rows"], ["detections"], perm=[0, 2, 1]),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", kind, ["n", "h", "w", 3])],
            [helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["n", "k", 6])],
            [
                numpy_helper.from_array(weights, "weights"),
                numpy_helper.from_array(np.full(6, bias, np.float32), "bias"),
                numpy_helper.from_array(np.array([0, 6, -1], np.int64), "flat"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return np.frombuffer(model.SerializeToString(), np.uint8)

    return make
