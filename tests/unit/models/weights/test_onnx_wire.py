"""Weights in other files are found in a graph's bytes, wherever they lie and however the bytes are laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx import onnx_ml_pb2 as proto

from models.errors import ReleaseRejectedError
from models.weights import onnx_wire
from models.weights.manifest import MANIFEST, ONNX
from models.weights.onnx_wire import draws_on_other_files
from models.weights.release import open_release

if TYPE_CHECKING:
    from collections.abc import Callable


def _outside(*, told: bool = True) -> TensorProto:
    """Return a tensor kept in another file; ``told`` by its location, too, or by its reference alone."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "outside")
    tensor.ClearField("raw_data")
    if told:
        tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


PLACES: dict[str, Callable[[ModelProto, TensorProto], object]] = {
    "initializer": lambda m, t: m.graph.initializer.append(t),
    "sparse values": lambda m, t: m.graph.sparse_initializer.add().values.CopyFrom(t),
    "sparse indices": lambda m, t: m.graph.sparse_initializer.add().indices.CopyFrom(t),
    "attribute": lambda m, t: m.graph.node[0].attribute.add(name="a").t.CopyFrom(t),
    "list": lambda m, t: m.graph.node[0].attribute.add(name="a").tensors.append(t),
    "sparse attribute": lambda m, t: m.graph.node[0].attribute.add(name="a").sparse_tensor.values.CopyFrom(t),
    "sparse list": lambda m, t: m.graph.node[0].attribute.add(name="a").sparse_tensors.add().indices.CopyFrom(t),
    "subgraph": lambda m, t: m.graph.node[0].attribute.add(name="a").g.initializer.append(t),
    "subgraphs": lambda m, t: m.graph.node[0].attribute.add(name="a").graphs.add().initializer.append(t),
    "function": lambda m, t: m.functions.add().node.add().attribute.add(name="a").t.CopyFrom(t),
    "function's default": lambda m, t: m.functions.add().attribute_proto.add(name="a").t.CopyFrom(t),
    "training": lambda m, t: m.training_info.add().algorithm.initializer.append(t),
    "initialization": lambda m, t: m.training_info.add().initialization.initializer.append(t),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("told", [True, False])
def test_weights_elsewhere_are_found_wherever_they_lie(
    tiny_detector: Callable[..., ModelProto], place: str, *, told: bool
) -> None:
    """A sound detector has none; with one tensor outside, in any place that the format has, it has."""
    model = tiny_detector()
    assert not draws_on_other_files(model.SerializeToString())
    PLACES[place](model, _outside(told=told))
    assert draws_on_other_files(model.SerializeToString())


def test_no_place_of_the_format_is_forgotten() -> None:
    """Every field of ONNX through which a tensor can be reached is followed; the library's own description says so."""
    kinds = {
        "ModelProto": onnx_wire._MODEL,
        "GraphProto": onnx_wire._GRAPH,
        "NodeProto": onnx_wire._NODE,
        "AttributeProto": onnx_wire._ATTRIBUTE,
        "TensorProto": onnx_wire._TENSOR,
        "SparseTensorProto": onnx_wire._SPARSE,
        "FunctionProto": onnx_wire._FUNCTION,
        "TrainingInfoProto": onnx_wire._TRAINING,
    }
    for name, kind in kinds.items():
        fields = getattr(proto, name).DESCRIPTOR.fields
        found = {
            f.number: kinds[f.message_type.name] for f in fields if f.message_type and f.message_type.name in kinds
        }
        assert onnx_wire._PARTS[kind] == found, name
    numbers = {field.name: field.number for field in TensorProto.DESCRIPTOR.fields}
    assert (numbers["external_data"], numbers["data_location"]) == (13, 14)


def test_tags_and_lengths_may_be_longer_than_they_need(tiny_detector: Callable[..., ModelProto]) -> None:
    """Readers accept numbers with idle bytes, so they hide nothing."""
    tensor = b"\xea\x80\x00" + b"\x82\x00" + b"\x0a\x00"  # field 13 and the length 2, each with an idle byte
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    data = b"\xba\x00" + bytes([0x80 | len(graph), 0]) + graph
    assert len(ModelProto.FromString(data).graph.initializer[0].external_data) == 1
    assert draws_on_other_files(data)
    assert draws_on_other_files(tiny_detector().SerializeToString() + data), "a second graph is merged into the first"


def test_groups_are_not_let_by() -> None:
    """They could hold what is not looked at."""
    assert draws_on_other_files(b"\x3b\x3c")


@given(st.binary(max_size=200))
def test_other_bytes_end_in_an_answer(data: bytes) -> None:
    """Whatever is found where a model should be; and what the library reads as a model, it and we read alike."""
    found = draws_on_other_files(data)
    try:
        model = ModelProto.FromString(data)
    except Exception:  # noqa: BLE001 - the library's own error types differ between its versions
        return
    tensors: list[Any] = list(model.graph.initializer)
    if any(tensor.external_data or tensor.data_location for tensor in tensors):
        assert found


def test_a_release_whose_network_draws_on_other_files_is_refused(
    make_manifest: Callable[..., Any], tiny_detector: Callable[..., ModelProto]
) -> None:
    """With digests that fit and no matter who made it: runtimes would follow the reference."""
    model = tiny_detector()
    model.graph.initializer.append(_outside())
    helper.set_model_props(model, {})
    files = {ONNX: model.SerializeToString(), "golden/0-bus.jpg": b"picture"}
    everything = files | {MANIFEST: make_manifest(files).to_bytes()}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in everything.items()}
    with pytest.raises(ReleaseRejectedError, match="draws weights from other files") as caught:
        open_release("m", "1", arrays, expect_digest=None)
    assert caught.value.step == "verify"


def _long(number: int, extra: int) -> bytes:
    """Return ``number`` as five bytes whose last one has ``extra`` bits that do not fit in 32."""
    parts = [(number >> shift & 0x7F) | 0x80 for shift in (0, 7, 14, 21)]
    return bytes((*parts, number >> 28 & 0x0F | extra))


@pytest.mark.parametrize("extra", [0x00, 0x10, 0x40])
@pytest.mark.parametrize("number", [13, 14, 5, 1])
def test_tags_that_readers_cut_differently_count_as_elsewhere(number: int, extra: int) -> None:
    """A tag of five bytes is field 13 to a reader that keeps 32 bits of it, and another to one that keeps all."""
    tensor = _long(number << 3 | 2, extra) + b"\x00"
    graph = b"\x2a" + bytes((len(tensor),)) + tensor
    assert draws_on_other_files(b"\x3a" + bytes((len(graph),)) + graph)


def test_a_length_longer_than_it_need_be_counts_as_elsewhere() -> None:
    """Readers limit lengths in ways of their own."""
    assert draws_on_other_files(b"\x3a\x80\x80\x00")
