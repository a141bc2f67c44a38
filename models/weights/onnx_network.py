"""ONNX Runtime on the CPU as the judge of a conversion. Runs in the sandboxed child."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from models.engine.decode import decode
from models.engine.preprocess import letterbox
from models.errors import ConversionError, InvalidImageError
from models.types import Contract

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from models.types import Head
    from models.weights.onnx_graph import ExportInfo

_RANK = 3
_BOX = 4
_END2END_COLUMNS = 6


class OnnxNetwork:
    """A graph as a function of uint8 (n, h, w, 3) RGB, be it ``wrapped`` for serving or as exported (NCHW, 0 to 1)."""

    def __init__(self, data: bytes, *, wrapped: bool) -> None:
        """Load a single-file model; raises ConversionError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(len(os.sched_getaffinity(0)), 1) if hasattr(os, "sched_getaffinity") else 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            msg = "The ONNX model cannot be loaded: an operator or shape is not supported. Export it again."
            raise ConversionError(msg) from error
        self._input = self._session.get_inputs()[0]
        self._wrapped = wrapped

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the graph; returns float32. Raises ConversionError."""
        tensor: NDArray[np.generic] = batch
        if not self._wrapped:
            dtype = np.float16 if "float16" in self._input.type else np.float32
            scaled = batch.astype(np.float32) / np.float32(255)
            tensor = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)).astype(dtype)
        try:
            output = self._session.run(None, {self._input.name: tensor})[0]
        except Exception as error:
            height, width = batch.shape[1:3]
            msg = f"The converted model fails on images of {height}x{width} pixels; export it with dynamic=True."
            raise ConversionError(msg) from error
        return np.asarray(output, np.float32)


def contract_of(network: OnnxNetwork, info: ExportInfo, picture: Path) -> Contract:
    """Return the contract of an export, its head told by its metadata and by the output's shape on one picture."""
    contract = Contract("detect", info.names, info.stride, info.imgsz, "raw", dynamic=info.static is None)
    try:
        image = decode(picture.read_bytes())
    except InvalidImageError:
        image = np.full((info.imgsz, info.imgsz, 3), 114, np.uint8)
    shape = network(letterbox(image, contract)[0][None]).shape
    columns = _BOX + len(info.names)
    head: Head | None = None
    if len(shape) == _RANK and shape[2] == _END2END_COLUMNS and info.end2end is not False:
        head = "end2end"
    elif len(shape) == _RANK and shape[1] == columns and info.end2end is not True:
        head = "raw"
    if head is None:
        msg = (
            f"The model's output has shape {shape}, a detector of {len(info.names)} classes answers (n, k, 6) or "
            f"(n, {columns}, anchors); export a detector with nms=False."
        )
        raise ConversionError(msg)
    return replace(contract, head=head)
