"""Make a network with free height and width compute exactly what its forms of one fixed size compute.

Exporters write detection heads that read the size of a feature map (``Shape`` of an activation) to place their anchors.
OpenVINO then looks at the convolution's output twice, cannot merge its bias into it, and in bf16 rounds the sum once
more: a tenth of YOLO26n's boxes moved by over half a pixel. Where the size of a feature map is the image's size divided
by a stride, it is computed from the image instead, and free and fixed forms agree to the last bit.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

PROBE = (320, 640)
"""Height and width, multiples of every stride, at which strides are read off; they differ, to tell the axes apart."""
NCHW = 4


def untangle_sizes(model: Any, unit: int) -> int:
    """Replace every size of a feature map in ``model`` by arithmetic on the size of its one NHWC input.

    Changes ``model`` in place and returns how many places changed. Sizes that no stride explains stay as they are, and
    so do those whose stride does not divide ``unit``, which divides the sides of every image: they are rounded somehow.
    Raises RuntimeError where the network cannot be given a size of ``PROBE``.
    """
    from openvino import opset13 as ops  # noqa: PLC0415 - the runtime takes a second to load

    free = model.inputs[0].get_partial_shape()
    try:
        model.reshape([1, *PROBE, 3])
        sizes = {
            node.get_friendly_name(): [output.get_partial_shape() for output in node.outputs()]
            for node in model.get_ordered_ops()
        }
    finally:
        model.reshape(free)
    image = ops.shape_of(model.get_parameters()[0])

    # Shared by all places that read it: building nodes keeps Python's lock, and there are a hundred such places.
    sides = [ops.gather(image, ops.constant([axis], np.int64), ops.constant(0, np.int64)) for axis in range(3)]

    @functools.cache
    def side(axis: int, stride: int) -> Any:
        return sides[axis] if stride == 1 else ops.divide(sides[axis], ops.constant([stride], np.int64))

    @functools.cache
    def map_shape(channels: int, stride: int, kind: str) -> Any:
        shape = ops.concat([sides[0], ops.constant([channels], np.int64), side(1, stride), side(2, stride)], 0)
        return shape if kind == "i64" else ops.convert(shape, kind)

    changed = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ShapeOf":
            continue
        channels, stride = _channels_and_stride(node.input(0), sizes)
        if not stride or unit % stride:
            continue
        kind = node.output(0).get_element_type().to_string()
        node.output(0).replace(map_shape(channels, stride, kind).output(0))
        changed += 1
    # Infers all types anew, as validate_nodes_and_infer_types does, which would keep every other thread from Python.
    model.reshape(free)
    return changed


def _channels_and_stride(source: Any, sizes: dict[str, list[Any]]) -> tuple[int, int]:
    """Return the channels and the stride of the NCHW feature map that ``source`` reads, stride 0 if it is none."""
    free = source.get_partial_shape()
    if free.rank.is_dynamic or free.rank.get_length() != NCHW or free[1].is_dynamic or free[2].is_static:
        return 0, 0
    origin = source.get_source_output()
    twin = sizes.get(origin.get_node().get_friendly_name())
    if twin is None:
        return 0, 0
    fixed = twin[origin.get_index()]
    if fixed.is_dynamic:
        return 0, 0
    height, width = fixed[2].get_length(), fixed[3].get_length()
    stride = PROBE[0] // height if height else 0
    explained = stride > 0 and (height * stride, width * stride) == PROBE
    return free[1].get_length(), stride if explained else 0
