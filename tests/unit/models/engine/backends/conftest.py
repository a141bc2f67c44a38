"""Real networks of a few hundred weights: large enough to prove a runtime, small enough to build in no time."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

sys.modules.setdefault("openvino.tools.ovc", None)  # tests report to nobody either

ARCHITECTURE = {
    "nc": 3,
    "reg_max": 1,
    "end2end": True,
    "backbone": [[-1, 1, "Conv", [channels, 3, 2]] for channels in (8, 8, 16, 16, 16)],
    "head": [[[2, 3, 4], 1, "Detect", ["nc"]]],
}
"""Strides 8, 16 and 32 as detectors have them, both heads, three classes."""


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


@pytest.fixture(scope="session")
def tiny_weights() -> Callable[..., dict[str, np.ndarray]]:
    """Return a maker of what the torch backend rebuilds a network from: tensors and a yaml, as uint8 bytes."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ultralytics")
    from safetensors.torch import save  # noqa: PLC0415 - after importorskip

    from models.engine.backends import torch_network  # noqa: PLC0415 - as above

    def make(*, bias: float = 0.0, **changes: object) -> dict[str, np.ndarray]:
        spec = copy.deepcopy(ARCHITECTURE) | changes
        detection_model, _ = torch_network._ultralytics()
        torch.manual_seed(0)
        tensors = detection_model(copy.deepcopy(spec), ch=3, verbose=False).state_dict()
        generator = torch.Generator().manual_seed(1)
        for name, tensor in tensors.items():
            if name.endswith("bias"):
                tensor.add_(torch.rand(tensor.shape, generator=generator) + bias)
        return {
            "model.safetensors": np.frombuffer(save(tensors), np.uint8),
            "model.yaml": np.frombuffer(yaml.safe_dump(spec).encode(), np.uint8),
        }

    return make
