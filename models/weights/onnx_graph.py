"""Surgery on ONNX graphs: what may come in, and how every graph leaves: uint8 NHWC in, ``detections`` float32 out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from models.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INPUT = "images"
OUTPUT = "detections"
_PREFIX = "steelyard/"
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_RANK = 4
_MAX_METADATA = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What an Ultralytics export says of itself, and what its input allows.

    names: class names by id. stride, imgsz: pixels. end2end: None where the export does not say.
    static: (height, width) where the input's shape is fixed, else None.
    """

    names: tuple[str, ...]
    stride: int
    imgsz: int
    end2end: bool | None
    static: tuple[int, int] | None


def load_graph(data: bytes) -> Any:
    """Parse and check a single-file ONNX model from another source; returns onnx.ModelProto. Raises ConversionError."""
    import onnx  # noqa: PLC0415 - parses untrusted bytes: only the sandboxed child needs it

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        msg = "The file is not a readable ONNX model; export it again."
        raise ConversionError(msg) from error
    if not model.graph.node:
        _refuse("The file is not a readable ONNX model; export it again.")
    _refuse_what_is_not_served(model)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        _refuse("The model keeps weights in other files; export it as a single file.")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        msg = "The ONNX model is malformed; export it again."
        raise ConversionError(msg) from error
    return model


def _refuse_what_is_not_served(model: Any) -> None:
    if len(model.functions) or any(op.domain not in {"", "ai.onnx"} for op in model.opset_import):
        _refuse("The model uses custom operators; export it with standard ONNX operators only.")
    if len(model.training_info) or len(model.graph.sparse_initializer):
        _refuse("The model holds sparse weights or training graphs, which Steelyard does not serve; export it without.")
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            _refuse("The model uses custom operators; export it with standard ONNX operators only.")
        if node.op_type in _CONTROL_FLOW:
            _refuse("The model contains control flow, which Steelyard does not serve; export it without.")
        if node.op_type == "NonMaxSuppression":
            _refuse("The model was exported with its own NMS; export it again with nms=False.")


def refuse_non_finite(model: Any) -> None:
    """Refuse a graph with NaN or infinity among its weights. Raises ConversionError."""
    import numpy as np  # noqa: PLC0415 - together with onnx
    from onnx import numpy_helper  # noqa: PLC0415 - see load_graph

    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            _refuse("The weights hold NaN or infinity: training failed or the file is damaged. Use another checkpoint.")


def read_export(model: Any) -> ExportInfo:
    """Read the metadata that Ultralytics writes into its exports, and the input's shape. Raises ConversionError."""
    meta = {prop.key: prop.value for prop in model.metadata_props}
    if "task" not in meta or "names" not in meta:
        _refuse("The ONNX model carries no class names and task; export it with Ultralytics, which writes them.")
    if meta["task"] != "detect":
        _refuse(f"The model's task is {meta['task'][:20]}, not detection; give a detector.")
    height, width = _input_sides(model)
    stride = _number(meta, "stride", 32)
    static = (height, width) if height and width else None
    if static and height != width:
        _refuse(f"The model takes only {height}x{width} pixels; export it square or with dynamic=True.")
    if (height is None) != (width is None):
        _refuse("The model fixes one image side and not the other; export it square or with dynamic=True.")
    return ExportInfo(
        names=names_of(_literal(meta, "names")),
        stride=stride,
        imgsz=static[0] if static else image_size(_literal(meta, "imgsz"), stride),
        end2end={"True": True, "False": False}.get(meta.get("end2end", "")),
        static=static,
    )


def names_of(value: object) -> tuple[str, ...]:
    """Return class names by id from Ultralytics' dict or list. Raises ConversionError where there are none."""
    if isinstance(value, dict):
        if set(value) != set(range(len(value))):
            _refuse("The model's class ids are not 0, 1, 2 ...; mend the data set's names and train again.")
        value = [value[index] for index in range(len(value))]
    if not isinstance(value, (list, tuple)) or not value:
        _refuse("The model has no classes: it was never trained on a data set. Train it, or give another file.")
    names = tuple(str(name).strip() for name in value)
    if len(set(names)) != len(names) or not all(names):
        _refuse("The model has empty or repeated class names; mend the data set's names and train again.")
    return names


def image_size(value: object, stride: int) -> int:
    """Return the long side in pixels, a multiple of ``stride``, from Ultralytics' ``imgsz`` (int or list)."""
    if isinstance(value, (list, tuple)) and value:
        value = max((side for side in value if isinstance(side, int)), default=640)
    size = value if isinstance(value, int) and value > 0 else 640
    return max(-(-size // stride), 1) * stride


def wrap(model: Any, metadata: Mapping[str, str]) -> None:
    """Give the graph the one input and output that every release has, in place.

    Input ``images``: uint8 (n, h, w, 3) RGB, 0 to 255; the graph casts, divides by 255 and transposes to NCHW, with the
    rounding of Ultralytics' own division. Output ``detections``: float32. ``metadata`` replaces what the exporter wrote
    (dates and paths would make equal weights unequal files).
    """
    from onnx import TensorProto, helper  # noqa: PLC0415 - see load_graph

    graph = model.graph
    old_input, old_output = graph.input[0], graph.output[0]
    kind = old_input.type.tensor_type.elem_type
    batch, _, height, width = old_input.type.tensor_type.shape.dim
    inner, outer = f"{_PREFIX}nchw", old_output.name
    for node in graph.node:
        node.input[:] = [inner if name == old_input.name else name for name in node.input]
    shape = [_dim(batch, "batch"), _dim(height, "height"), _dim(width, "width"), 3]
    divisor = helper.make_tensor(f"{_PREFIX}255", TensorProto.FLOAT, [], [255.0])
    head = [
        helper.make_node("Cast", [INPUT], [f"{_PREFIX}float"], name=f"{_PREFIX}Cast", to=TensorProto.FLOAT),
        helper.make_node("Div", [f"{_PREFIX}float", divisor.name], [f"{_PREFIX}unit"], name=f"{_PREFIX}Div"),
    ]
    unit = f"{_PREFIX}unit"
    if kind != TensorProto.FLOAT:
        head.append(helper.make_node("Cast", [unit], [f"{_PREFIX}half"], name=f"{_PREFIX}CastHalf", to=kind))
        unit = f"{_PREFIX}half"
    head.append(helper.make_node("Transpose", [unit], [inner], name=f"{_PREFIX}Transpose", perm=[0, 3, 1, 2]))
    # A Cast to the type it has already is removed by every runtime, and it spares renaming the producer's output.
    tail = helper.make_node("Cast", [outer], [OUTPUT], name=f"{_PREFIX}Output", to=TensorProto.FLOAT)
    nodes = [*head, *graph.node, tail]
    output_shape = [_dim(dim, f"dim{index}") for index, dim in enumerate(old_output.type.tensor_type.shape.dim)]
    output_shape[0] = shape[0]
    _replace_nodes(graph, nodes)
    del graph.input[:], graph.output[:], model.metadata_props[:]
    graph.initializer.append(divisor)
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, output_shape))
    graph.name, graph.doc_string, model.doc_string = "detector", "", ""
    helper.set_model_props(model, dict(metadata))


def soften_top_k(model: Any) -> bool:
    """Let every TopK with a constant k take ``min(k, what is there)``, in place; return whether any was changed.

    An end-to-end head asks for 300 boxes, and a long thin image gives a small network fewer anchors than that. The
    torch model takes the minimum, its export bakes in the constant. Done only where needed: TensorRT prefers constants.
    """
    import numpy as np  # noqa: PLC0415 - together with onnx
    from onnx import helper, numpy_helper  # noqa: PLC0415 - see load_graph

    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    nodes, changed = [], False
    for index, node in enumerate(graph.node):
        if node.op_type == "TopK" and len(node.input) > 1 and node.input[1] in constants:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
            at = f"{_PREFIX}topk{index}"
            graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), f"{at}/axis"))
            nodes += [
                helper.make_node("Shape", [node.input[0]], [f"{at}/shape"], name=f"{at}/Shape"),
                helper.make_node("Gather", [f"{at}/shape", f"{at}/axis"], [f"{at}/size"], name=f"{at}/Gather"),
                helper.make_node("Min", [node.input[1], f"{at}/size"], [f"{at}/k"], name=f"{at}/Min"),
            ]
            node.input[1] = f"{at}/k"
            changed = True
        nodes.append(node)
    _replace_nodes(graph, nodes)
    return changed


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    # Copied first: deleting from a protobuf list invalidates what it holds. Inferred shapes no longer hold either.
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)


def _tensors(model: Any) -> Iterator[Any]:
    graph = model.graph
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g") or len(attribute.graphs):
                _refuse("The model contains control flow, which Steelyard does not serve; export it without.")
            if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
                _refuse("The model holds sparse constants, which Steelyard does not serve; export it without.")


def _input_sides(model: Any) -> tuple[int | None, int | None]:
    """Return the input's height and width in pixels, None where dynamic; refuse anything but one NCHW float image."""
    from onnx import TensorProto  # noqa: PLC0415 - see load_graph

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.input) != 1 or len(model.graph.output) != 1:
        _refuse("A detector has one input and one output, this model has others; export a plain detector.")
    tensor = inputs[0].type.tensor_type
    dims = list(tensor.shape.dim)
    if len(dims) != _RANK or tensor.elem_type not in {TensorProto.FLOAT, TensorProto.FLOAT16}:
        _refuse("The model's input is not a float image (n, 3, height, width); export it with Ultralytics.")
    if dims[1].dim_value not in {0, 3}:
        _refuse(f"The model takes {dims[1].dim_value} channels; only three (RGB) are served.")
    return dims[2].dim_value or None, dims[3].dim_value or None


def _dim(dim: Any, name: str) -> int | str:
    return int(dim.dim_value) if dim.dim_value else str(dim.dim_param or name)


def _literal(meta: Mapping[str, str], key: str) -> object:
    text = meta.get(key, "None")
    if len(text) > _MAX_METADATA:
        _refuse(f"The model's {key} are larger than a megabyte; export it again.")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        _refuse(f"The model's {key} cannot be read; export it again with Ultralytics.")


def _number(meta: Mapping[str, str], key: str, default: int) -> int:
    text = meta.get(key, "")
    return int(text) if text.isdecimal() and 1 <= int(text) <= 128 else default  # noqa: PLR2004 - manifest.MAX_STRIDE


def _refuse(message: str) -> NoReturn:
    raise ConversionError(message)
