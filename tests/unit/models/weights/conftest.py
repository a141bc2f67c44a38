"""Builders for releases, detections and tiny ONNX detectors."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.types import Detections, Thresholds
from models.weights.manifest import MANIFEST, ONNX, FileEntry, GoldenEntry, Manifest, Source

if TYPE_CHECKING:
    from collections.abc import Callable

Files = dict[str, NDArray[np.uint8]]


@pytest.fixture
def picture() -> bytes:
    """Return a JPEG of 64 x 48 pixels."""
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1].tobytes())


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Return a function that builds a sound manifest over given files, with fields replaced at will."""

    def build(files: dict[str, bytes] | None = None, **changes: Any) -> Manifest:
        files = {ONNX: b"graph", "golden/0-bus.jpg": b"picture"} if files is None else files
        fields: dict[str, Any] = {
            "model": "m",
            "task": "detect",
            "names": ("apple", "pear"),
            "stride": 32,
            "imgsz": 320,
            "head": "end2end",
            "dynamic": True,
            "thresholds": Thresholds(),
            "files": {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()},
            "source": Source("ab" * 32, 7, "pt"),
            "libraries": {"torch": "2.13.0"},
            "golden": (GoldenEntry("golden/0-bus.jpg", (48, 64), ((1.0, 2.0, 30.5, 40.25),), (0.75,), (1,)),),
            "metrics": {"mAP50-95": 0.5},
            "parity": {"max_pixel": 0.1},
        }
        return Manifest(**(fields | changes))

    return build


@pytest.fixture
def release_files(make_manifest: Callable[..., Manifest]) -> Files:
    """Return the files of a sound release of the model ``m``."""
    files = {ONNX: b"graph", "golden/0-bus.jpg": b"picture"}
    everything = files | {MANIFEST: make_manifest(files).to_bytes()}
    return {name: np.frombuffer(data, np.uint8) for name, data in everything.items()}


@pytest.fixture
def boxes() -> Callable[..., Detections]:
    """Return a function that turns rows of (x1, y1, x2, y2, score, class) into detections."""

    def build(*rows: tuple[float, float, float, float, float, int]) -> Detections:
        table = np.array(rows, np.float32).reshape(-1, 6)
        return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))

    return build


@pytest.fixture
def tiny_detector() -> Callable[..., onnx.ModelProto]:
    """Return a function that builds an ONNX detector which sees the same boxes everywhere.

    As exported: float NCHW in, 0 to 1; its scores fall with the picture's mean, so that the input matters.
    """
    return _tiny_detector


def _tiny_detector(
    *, head: str = "raw", side: int | None = None, metadata: dict[str, str] | None = None, score: float = 0.9
) -> onnx.ModelProto:
    if head == "raw":
        values = np.zeros((1, 6, 3), np.float32)
        values[0, :4] = np.array([[16, 16, 12, 10], [40, 24, 20, 20], [8, 30, 6, 6]], np.float32).T
        values[0, 4:] = np.array([[score, 0.1], [0.2, score - 0.3], [0.02, 0.01]], np.float32).T
        mask = np.zeros_like(values)
        mask[0, 4:] = -0.1
    else:
        values = np.array([[[10, 11, 22, 21, score, 0], [30, 14, 50, 34, score - 0.3, 1]]], np.float32)
        mask = np.zeros_like(values)
        mask[..., 4] = -0.1
    shape = ["batch", 3, "height", "width"] if side is None else [1, 3, side, side]
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "flat"], ["column"]),
        helper.make_node("Mul", ["column", "mask"], ["shift"]),
        helper.make_node("Add", ["shift", "values"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [shape[0], *values.shape[1:]])],
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "flat"),
            numpy_helper.from_array(mask, "mask"),
            numpy_helper.from_array(values, "values"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    standard = {"task": "detect", "names": "{0: 'apple', 1: 'pear'}", "stride": "32", "imgsz": "[64, 64]"}
    helper.set_model_props(model, standard | {"end2end": str(head == "end2end")} | (metadata or {}))
    return model
