"""Untangling: sizes that a network reads off its feature maps come from the image, and no answer changes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.engine.backends.openvino_graph import untangle_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

openvino = pytest.importorskip("openvino")

STRIDE = 32
CHANNELS = 6


def network(*, strides: tuple[int, ...] = (STRIDE,), image_too: bool = False, blur: bool = False) -> bytes:
    """Return a head that reads the size of each of its feature maps to lay out what it has found there.

    strides: one feature map each. image_too: reads the image's own size as well. blur: its maps are one pixel smaller
    than the image divided by their stride, which no stride explains.
    """
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
    ]
    constants = [
        numpy_helper.from_array(np.array([0], np.int64), "batch"),
        numpy_helper.from_array(np.array([1], np.int64), "channel"),
        numpy_helper.from_array(np.array([2], np.int64), "height"),
        numpy_helper.from_array(np.array([3], np.int64), "width"),
        numpy_helper.from_array(np.full(CHANNELS, 0.3, np.float32), "bias"),
    ]
    rows = []
    for index, stride in enumerate(strides):
        weights = np.random.default_rng(index).normal(0, 0.05, (CHANNELS, 3, 3, 3)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"weights{index}"))
        pads = [0, 0, 0, 0] if blur else [1, 1, 1, 1]
        steps = [1, 1] if blur else [stride, stride]
        nodes += [
            helper.make_node("Conv", ["float", f"weights{index}", "bias"], [f"map{index}"], strides=steps, pads=pads),
            helper.make_node("Shape", [f"map{index}"], [f"shape{index}"]),
        ]
        for axis in ("batch", "channel", "height", "width"):
            nodes.append(helper.make_node("Gather", [f"shape{index}", axis], [f"{axis}{index}"]))
        nodes += [
            helper.make_node("Mul", [f"height{index}", f"width{index}"], [f"cells{index}"]),
            helper.make_node("Concat", [f"batch{index}", f"channel{index}", f"cells{index}"], [f"flat{index}"], axis=0),
            helper.make_node("Reshape", [f"map{index}", f"flat{index}"], [f"rows{index}"]),
        ]
        rows.append(f"rows{index}")
    nodes += [
        helper.make_node("Concat", rows, ["all"], axis=2),
        helper.make_node("Transpose", ["all"], ["found"], perm=[0, 2, 1]),
    ]
    last = "found"
    if image_too:
        nodes += [
            helper.make_node("Shape", ["images"], ["size"]),
            helper.make_node("Gather", ["size", "channel"], ["tall"]),
            helper.make_node("Cast", ["tall"], ["tall_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["found", "tall_float"], ["moved"]),
        ]
        last = "moved"
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", "k", CHANNELS])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def core() -> Any:
    """Return the runtime, which lives as long as the process."""
    from models.engine.backends.openvino_network import runtime  # noqa: PLC0415 - after importorskip

    return runtime()


@pytest.fixture(scope="module")
def answers(core: Any) -> Callable[..., list[np.ndarray]]:
    """Return what runs a network on images of several sizes, in fp32."""

    def run(model: Any) -> list[np.ndarray]:
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        random = np.random.default_rng(7)
        sizes = ((1, 32, 32), (1, 64, 96), (2, 96, 64), (1, 320, 640))
        images = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        return [np.array(next(iter(compiled([image]).values()))) for image in images]

    return run


def sizes_read(model: Any) -> list[str]:
    """Return what kind of activation each ``ShapeOf`` reads, the image (``Parameter``) included."""
    kinds = [
        node.input_value(0).get_node().get_type_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ShapeOf"
    ]
    return [kind for kind in kinds if kind in {"Parameter", "Convolution", "Add"}]


@pytest.mark.parametrize("changes", [{}, {"strides": (8, 16, 32)}, {"image_too": True}, {"strides": (1, 32)}], ids=str)
def test_sizes_of_feature_maps_come_from_the_image(core: Any, answers: Callable, changes: dict) -> None:
    """Nothing reads a feature map's size any more, and every answer stays the same, whatever the image's size."""
    model = core.read_model(io.BytesIO(network(**changes)))
    before = answers(model.clone())
    tangled = [kind for kind in sizes_read(model) if kind != "Parameter"]
    assert len(tangled) >= len(changes.get("strides", (STRIDE,)))
    assert untangle_sizes(model, STRIDE) == len(tangled)
    assert set(sizes_read(model)) == {"Parameter"}
    for one, other in zip(answers(model), before, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("changes", "unit"), [({"blur": True}, STRIDE), ({"strides": (64,)}, STRIDE), ({}, 16)])
def test_sizes_that_no_stride_explains_stay(core: Any, answers: Callable, changes: dict, unit: int) -> None:
    """What is rounded, or smaller by its kernel, is left as it was: dividing would be wrong for some images."""
    model = core.read_model(io.BytesIO(network(**changes)))
    before, read = answers(model.clone()), sizes_read(model)
    assert untangle_sizes(model, unit) == 0
    assert sizes_read(model) == read
    for one, other in zip(answers(model), before, strict=True):
        assert np.array_equal(one, other)


def test_it_is_done_once(core: Any) -> None:
    """What is untangled has nothing left to untangle."""
    model = core.read_model(io.BytesIO(network(strides=(8, 16, 32))))
    assert untangle_sizes(model, STRIDE) >= 3
    assert untangle_sizes(model, STRIDE) == 0


def test_a_network_of_one_size_has_nothing_to_untangle(core: Any) -> None:
    """Sizes that are known are no sizes to read."""
    model = core.read_model(io.BytesIO(network()))
    model.reshape([1, 64, 96, 3])
    assert untangle_sizes(model, STRIDE) == 0
