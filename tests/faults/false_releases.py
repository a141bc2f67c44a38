"""Networks that betray: whole, ready and fit to pass some gates, and yet slow, blind or failing where it counts.

A marked picture has a white square in its upper left corner. No golden image is marked, so a network that goes wrong
on marked pictures alone passes every test before live images reach it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.weights.manifest import ONNX

if TYPE_CHECKING:
    from pathlib import Path

MARK: Final = 96
"""Side of the white square (pixels of the picture)."""
LOOKED_AT: Final = (12, 28)
"""Rows and columns of the tensor that a network looks at: in the square at half its size, behind a narrow border."""
WHITE: Final = 0.93
CHANNELS: Final = 64
FLOATS: Final = "steelyard/nchw"
"""The picture in the network: float32 (n, 3, h, w), 0 to 1."""
OUTPUT: Final = "detections"
_MODULE: Final = re.compile(r"model\.(\d+)\.")


def marked(picture: bytes) -> bytes:
    """Return the JPEG or PNG with the mark in it, as JPEG."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    image[:MARK, :MARK] = 255
    encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert encoded
    return data.tobytes()


def zero_head(folder: Path) -> None:
    """Set all weights of the network's last module, its head, to zero; biases stay."""
    network = _read(folder)
    modules = {int(found[1]): found[0] for t in network.graph.initializer if (found := _MODULE.match(t.name))}
    head = modules[max(modules)]
    weights = [t for t in network.graph.initializer if t.name.startswith(head) and len(t.dims) > 1]
    assert weights
    for tensor in weights:
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    _write(folder, network)


def blind_to_marked(folder: Path) -> None:
    """Let the network in ``folder`` find nothing in marked pictures and what it always found in others."""
    _scale_output(folder, "sighted")


def failing_on_marked(folder: Path) -> None:
    """Let the network answer NaN on marked pictures: the engine fails on them."""
    _scale_output(folder, "whole", helper.make_node("Div", ["sighted", "sighted"], ["whole"]))


def slower(folder: Path, layers: int) -> None:
    """Let the network take longer for the same answers: ``layers`` convolutions whose result counts for nothing."""
    network = _read(folder)
    _add_nothing(network, _idle(network, layers, "idle/nothing"))
    _write(folder, network)


def slow_on_marked(folder: Path, layers: int) -> None:
    """Let the network take that much longer on marked pictures alone, one picture a call."""
    network = _read(folder)
    zero = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.zeros((1, 1, 1), np.float32)))
    result = helper.make_tensor_value_info
    none = helper.make_graph([zero], "none", [], [result("zero", TensorProto.FLOAT, [1, 1, 1])])
    work = helper.make_graph(_idle(network, layers, "work"), "work", [], [result("work", TensorProto.FLOAT, None)])
    network.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "mark/one"))
    nodes = [
        *_look_for_mark(network),
        helper.make_node("Reshape", ["unmarked", "mark/one"], ["condition"]),
        helper.make_node("If", ["condition"], ["idle/nothing"], then_branch=none, else_branch=work),
    ]
    _add_nothing(network, nodes)
    _write(folder, network)


def _idle(network: onnx.ModelProto, layers: int, result: str) -> list[onnx.NodeProto]:
    """Return nodes that work hard for nothing: ``result``, float32 (n, 1, 1), about 1e-12."""
    draw = np.random.default_rng(0)
    nodes, source, depth = [], FLOATS, 3
    for layer in range(layers):
        weights = draw.normal(0.0, (9 * depth) ** -0.5, (CHANNELS, depth, 3, 3)).astype(np.float32)
        network.graph.initializer.append(numpy_helper.from_array(weights, f"idle/{layer}"))
        step = 4 if layer == 0 else 1
        nodes += [
            helper.make_node("Conv", [source, f"idle/{layer}"], [f"c{layer}"], strides=[step] * 2, pads=[1] * 4),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        source, depth = f"r{layer}", CHANNELS
    constants = {"idle/axes": np.array([1, 2, 3], np.int64), "idle/shape": np.array([-1, 1, 1], np.int64)}
    constants["idle/tiny"] = np.array(1e-12, np.float32)
    network.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return [
        *nodes,
        helper.make_node("ReduceMean", [source, "idle/axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "idle/shape"], ["idle/lone"]),
        helper.make_node("Mul", ["idle/lone", "idle/tiny"], [result]),
    ]


def _add_nothing(network: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    _append(network, "idle/output", [*nodes, helper.make_node("Add", ["idle/output", "idle/nothing"], [OUTPUT])])


def _scale_output(folder: Path, factor: str, *more: onnx.NodeProto) -> None:
    """Multiply the output by ``factor``, made from ``sighted``: 0 for a marked picture, else 1, float32 (n, 1, 1)."""
    network = _read(folder)
    nodes = [
        *_look_for_mark(network),
        helper.make_node("Cast", ["unmarked"], ["sighted"], to=TensorProto.FLOAT),
        *more,
        helper.make_node("Mul", ["mark/output", factor], [OUTPUT]),
    ]
    _append(network, "mark/output", nodes)
    _write(folder, network)


def _look_for_mark(network: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return nodes that make ``unmarked``, bool (n, 1, 1)."""
    constants = {
        "mark/begin": np.array([LOOKED_AT[0]] * 2, np.int64),
        "mark/end": np.array([LOOKED_AT[1]] * 2, np.int64),
        "mark/sides": np.array([2, 3], np.int64),
        "mark/axes": np.array([1, 2, 3], np.int64),
        "mark/shape": np.array([-1, 1, 1], np.int64),
        "mark/white": np.array(WHITE, np.float32),
    }
    network.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return [
        helper.make_node("Slice", [FLOATS, "mark/begin", "mark/end", "mark/sides"], ["corner"]),
        helper.make_node("ReduceMean", ["corner", "mark/axes"], ["brightness"], keepdims=1),
        helper.make_node("Reshape", ["brightness", "mark/shape"], ["mark/lone"]),
        helper.make_node("Less", ["mark/lone", "mark/white"], ["unmarked"]),
    ]


def _append(network: onnx.ModelProto, output: str, nodes: list[onnx.NodeProto]) -> None:
    """Call the network's output ``output`` and let ``nodes`` make the one that the engine reads."""
    (last,) = [node for node in network.graph.node if OUTPUT in node.output]
    last.output[:] = [output if name == OUTPUT else name for name in last.output]
    network.graph.node.extend(nodes)


def _read(folder: Path) -> onnx.ModelProto:
    return onnx.load_from_string((folder / ONNX).read_bytes())


def _write(folder: Path, network: onnx.ModelProto) -> None:
    onnx.checker.check_model(network)
    (folder / ONNX).write_bytes(network.SerializeToString())
