"""Whether an ONNX file draws weights from other files, told from its bytes without parsing what they hold.

Runtimes follow such references, from bytes in memory too: ONNX Runtime 1.31 those relative to the working folder,
OpenVINO 2026 any path. Registration refuses them, but a registry can be written to by hand, so every load looks again.
The numbers are those of ``onnx.proto``; the format is Protocol Buffers' wire format. What is none is left to the
runtime, which cannot read it either.
"""

from __future__ import annotations

from typing import Final

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_PARTS: Final[dict[int, dict[int, int]]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
"""Message -> number of a field -> the message in it, wherever that may hold a tensor."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_LONGEST_VARINT: Final = 10
_MOST: Final = 0xFFFF_FFFF
"""Largest tag or length that all readers understand alike."""


class _NoProtobufError(Exception):
    pass


class _OddError(Exception):
    """A tag or a length longer than it need be: readers cut it in ways of their own."""


def draws_on_other_files(data: bytes | memoryview) -> bool:
    """Return whether the ONNX model in ``data`` may keep any tensor in another file; False for what is no model.

    It also says True for groups, and for tags and lengths of more bytes than they need, which no exporter writes and
    which readers understand differently.
    """
    view = memoryview(data).cast("B")
    waiting = [(_MODEL, 0, len(view))]
    try:
        while waiting:
            kind, at, end = waiting.pop()
            while at < end:
                tag, at = _shortest(view, at, end)
                number, wire = tag >> 3, tag & 7
                if wire in {_GROUP, _END_GROUP} or not number or (kind == _TENSOR and number == _EXTERNAL_DATA):
                    return True
                value, at = _skip(view, at, end, wire)
                if kind == _TENSOR and number == _DATA_LOCATION and value:
                    return True
                part = _PARTS[kind].get(number)
                if part is not None and wire == _BYTES:
                    waiting.append((part, at - value, at))
    except _NoProtobufError:
        return False
    except _OddError:
        return True
    return False


def _skip(view: memoryview, at: int, end: int, wire: int) -> tuple[int, int]:
    """Return what stands there, a number or the length of bytes, and where the next field begins."""
    if wire == _VARINT:
        return _varint(view, at, end, _LONGEST_VARINT)
    value = 0
    if wire == _BYTES:
        value, at = _shortest(view, at, end)
    size = {_BYTES: value, _FIXED64: 8, _FIXED32: 4}.get(wire)
    if size is None or size > end - at:
        raise _NoProtobufError
    return value, at + size


def _shortest(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value, after = _varint(view, at, end, _LONGEST_VARINT)
    if value > _MOST or (after - at > 1 and not view[after - 1]):
        raise _OddError
    return value, after


def _varint(view: memoryview, at: int, end: int, longest: int) -> tuple[int, int]:
    value = 0
    for shift in range(longest):
        if at >= end:
            raise _NoProtobufError
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a number
            return value, at
    raise _NoProtobufError
