"""Graph surgery: what is let in, and that the wrapped graph computes what the source did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.errors import ConversionError
from models.weights.onnx_graph import (
    image_size,
    load_graph,
    names_of,
    read_export,
    refuse_non_finite,
    soften_top_k,
    wrap,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _run(model: ModelProto, tensor: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: tensor})[0])


@pytest.mark.parametrize("head", ["raw", "end2end"])
def test_the_wrapped_graph_answers_like_the_source(tiny_detector: Callable[..., ModelProto], head: str) -> None:
    """Uint8 NHWC in equals float NCHW / 255 in; names and types are those of every release."""
    model = load_graph(tiny_detector(head=head).SerializeToString())
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 64, 3), np.uint8)
    before = _run(model, np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255))
    wrap(model, {"task": "detect"})
    after = _run(model, images)
    assert np.allclose(before, after, atol=1e-6)
    graph = model.graph
    assert [value.name for value in graph.input] == ["images"]
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [value.name for value in graph.output] == ["detections"]
    assert {prop.key: prop.value for prop in model.metadata_props} == {"task": "detect"}
    load_graph(model.SerializeToString())


def test_wrapping_makes_equal_weights_equal_bytes(tiny_detector: Callable[..., ModelProto]) -> None:
    """Dates and paths of the exporter would give one model many digests."""
    made = []
    for date in ("2026-01-01", "2026-02-02"):
        model = tiny_detector(metadata={"date": date})
        wrap(model, {"task": "detect"})
        made.append(model.SerializeToString())
    assert made[0] == made[1]


def test_a_half_precision_input_is_fed_in_half() -> None:
    """Exports with half=True take and give float16; a release takes uint8 and gives float32."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["output0"])],
        "half",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT16, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT16, ["n", 3, "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    wrap(model, {})
    output = _run(model, np.full((1, 2, 4, 3), 51, np.uint8))
    assert (output.dtype, output.shape) == (np.float32, (1, 3, 2, 4))
    assert np.allclose(output, 0.2, atol=1e-3)


def test_garbage_is_no_graph() -> None:
    """Bytes that are no protobuf, and a protobuf without nodes."""
    for data in (b"", b"text", b"\x08\x09", bytes(100)):
        with pytest.raises(ConversionError, match=r"not a readable|malformed"):
            load_graph(data)


def test_weights_in_other_files_are_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """External data could name any file of the machine."""
    model = tiny_detector()
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ConversionError, match="single file"):
        load_graph(model.SerializeToString())


def test_custom_operators_are_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """By the node's domain and by the imported one."""
    model = tiny_detector()
    model.graph.node[0].domain = "com.evil"
    with pytest.raises(ConversionError, match="custom operators"):
        load_graph(model.SerializeToString())
    model = tiny_detector()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    with pytest.raises(ConversionError, match="custom operators"):
        load_graph(model.SerializeToString())


@pytest.mark.parametrize(("operator", "words"), [("NonMaxSuppression", "nms=False"), ("If", "control flow")])
def test_operators_that_are_not_served_are_refused(
    tiny_detector: Callable[..., ModelProto], operator: str, words: str
) -> None:
    """A baked-in NMS ignores the request's thresholds; control flow hides subgraphs."""
    model = tiny_detector()
    model.graph.node[1].op_type = operator
    with pytest.raises(ConversionError, match=words):
        load_graph(model.SerializeToString())


def test_sparse_constants_and_subgraphs_in_attributes_are_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """Their weights escape the checks of the dense ones."""
    model = tiny_detector()
    model.graph.node[0].attribute.add(name="x").g.CopyFrom(tiny_detector().graph)
    with pytest.raises(ConversionError, match="control flow"):
        load_graph(model.SerializeToString())
    model = tiny_detector()
    model.graph.node[0].attribute.add(name="x").sparse_tensor.dims.append(1)
    with pytest.raises(ConversionError, match="sparse"):
        load_graph(model.SerializeToString())


def test_training_graphs_local_functions_and_sparse_weights_are_refused(
    tiny_detector: Callable[..., ModelProto],
) -> None:
    """Wherever else a model may hold operators or weights that no check looks at."""
    model = tiny_detector()
    model.training_info.add().algorithm.CopyFrom(tiny_detector().graph)
    with pytest.raises(ConversionError, match="training graphs"):
        load_graph(model.SerializeToString())
    model = tiny_detector()
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), "hidden"))
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="../secret")
    sparse.dims.append(4)
    with pytest.raises(ConversionError, match="sparse weights"):
        load_graph(model.SerializeToString())
    model = tiny_detector()
    local = model.functions.add(name="Evil", domain="")
    local.opset_import.append(helper.make_opsetid("com.evil", 1))
    local.node.append(helper.make_node("Run", ["x"], ["y"], domain="com.evil"))
    with pytest.raises(ConversionError, match="custom operators"):
        load_graph(model.SerializeToString())


@pytest.mark.parametrize("where", ["secret.bin", "../secret.bin", "/etc/passwd", "", "a/../../b"])
def test_weights_elsewhere_are_refused_wherever_they_lie(tiny_detector: Callable[..., ModelProto], where: str) -> None:
    """Beside the model, above it, anywhere; in a weight, a constant's tensor or one of a list of tensors."""
    outside = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=where)
    for place in ("initializer", "constant", "list"):
        model = tiny_detector()
        if place == "initializer":
            model.graph.initializer.append(outside)
        else:
            node = helper.make_node("Constant", [], ["c"])
            attribute = node.attribute.add(name="value")
            (attribute.t if place == "constant" else attribute.tensors.add()).CopyFrom(outside)
            model.graph.node.insert(0, node)
        with pytest.raises(ConversionError, match="single file"):
            load_graph(model.SerializeToString())


def test_a_malformed_graph_is_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """A node that reads what nobody writes."""
    model = tiny_detector()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ConversionError, match="malformed"):
        load_graph(model.SerializeToString())


def test_non_finite_weights_are_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """One NaN in one initializer."""
    model = tiny_detector()
    refuse_non_finite(model)
    values = numpy_helper.to_array(model.graph.initializer[-1]).copy()
    values.flat[0] = np.nan
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[-1].name))
    with pytest.raises(ConversionError, match="NaN"):
        refuse_non_finite(model)


def test_the_exports_own_words_are_read(tiny_detector: Callable[..., ModelProto]) -> None:
    """Names, stride, image size, head and shape."""
    info = read_export(tiny_detector(head="end2end"))
    assert (info.names, info.stride, info.imgsz, info.end2end, info.static) == (("apple", "pear"), 32, 64, True, None)
    info = read_export(tiny_detector(side=96))
    assert (info.imgsz, info.static, info.end2end) == (96, (96, 96), False)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"task": "segment"}, "task is segment"),
        ({"names": "{}"}, "no classes"),
        ({"names": "{0: 'a', 2: 'b'}"}, "class ids"),
        ({"names": "['a', 'a']"}, "repeated"),
        ({"names": "__import__('os').getcwd()"}, "cannot be read"),
        ({"names": "(" * 5000}, "cannot be read"),
    ],
)
def test_unsound_metadata_are_refused(
    tiny_detector: Callable[..., ModelProto], metadata: dict[str, str], words: str
) -> None:
    """Metadata are untrusted text: literals only."""
    with pytest.raises(ConversionError, match=words):
        read_export(tiny_detector(metadata=metadata))


def test_a_graph_without_metadata_is_refused(tiny_detector: Callable[..., ModelProto]) -> None:
    """Nobody could say what its classes mean."""
    model = tiny_detector()
    del model.metadata_props[:]
    with pytest.raises(ConversionError, match="no class names"):
        read_export(model)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([1, 3, 64, 96], "only 64x96"),
        ([1, 3, 64, "w"], "one image side"),
        ([1, 1, 64, 64], "1 channels"),
        ([1, 3, 64], "not a float image"),
    ],
)
def test_other_inputs_are_refused(tiny_detector: Callable[..., ModelProto], shape: list[int | str], words: str) -> None:
    """One square or free RGB image is all that preprocessing offers."""
    model = tiny_detector()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, shape))
    with pytest.raises(ConversionError, match=words):
        read_export(model)


def _top_k(k: int) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=1)],
        "top",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", "k"])],
        [numpy_helper.from_array(np.array([k], np.int64), "k")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_top_k_takes_what_is_there() -> None:
    """Fails before on four values, gives all four after; on many it still gives k."""
    model = _top_k(5)
    few, many = np.array([[3, 1, 2, 0]], np.float32), np.arange(9, dtype=np.float32)[None]
    with pytest.raises(Exception, match="k argument"):
        _run(model, few)
    assert soften_top_k(model)
    assert _run(model, few).tolist() == [[3, 2, 1, 0]]
    assert _run(model, many).tolist() == [[8, 7, 6, 5, 4]]
    assert not soften_top_k(model)


@pytest.mark.parametrize(
    ("value", "stride", "size"), [(640, 32, 640), ([480, 640], 32, 640), (650, 32, 672), (None, 32, 640), (0, 64, 640)]
)
def test_image_sizes_become_multiples_of_the_stride(value: object, stride: int, size: int) -> None:
    """As Ultralytics rounds them up."""
    assert image_size(value, stride) == size


def test_names_come_from_dict_or_list() -> None:
    """Ultralytics writes both."""
    assert names_of({1: "b", 0: "a"}) == ("a", "b")
    assert names_of(["a", "b"]) == ("a", "b")
    with pytest.raises(ConversionError):
        names_of("ab")
