"""ONNX Runtime as the judge: it tells the head, and its failures are one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.errors import ConversionError
from models.weights.onnx_graph import read_export
from models.weights.onnx_network import OnnxNetwork, contract_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx import ModelProto


@pytest.fixture
def path(tmp_path: Path, picture: bytes) -> Path:
    """Return the path of a picture."""
    found = tmp_path / "p.jpg"
    found.write_bytes(picture)
    return found


@pytest.mark.parametrize("head", ["raw", "end2end"])
@pytest.mark.parametrize("side", [None, 64])
def test_the_head_is_told_by_the_output(
    tiny_detector: Callable[..., ModelProto], path: Path, head: str, side: int | None
) -> None:
    """Both heads, dynamic and static; old exports that do not say which they have too."""
    for metadata in ({}, {"end2end": "unknown"}):
        model = tiny_detector(head=head, side=side, metadata=metadata)
        network = OnnxNetwork(model.SerializeToString(), wrapped=False)
        contract = contract_of(network, read_export(model), path)
        assert (contract.head, contract.dynamic, contract.imgsz) == (head, side is None, 64)


def test_an_output_that_fits_no_head_is_refused(tiny_detector: Callable[..., ModelProto], path: Path) -> None:
    """Three classes named, two predicted."""
    model = tiny_detector(metadata={"names": "['a', 'b', 'c']"})
    network = OnnxNetwork(model.SerializeToString(), wrapped=False)
    with pytest.raises(ConversionError, match=r"\(1, 6, 3\), a detector of 3 classes"):
        contract_of(network, read_export(model), path)


def test_an_undecodable_picture_does_not_hide_the_head(tiny_detector: Callable[..., ModelProto], path: Path) -> None:
    """The head shows on any image; the pictures are judged later."""
    path.write_bytes(b"text")
    model = tiny_detector()
    network = OnnxNetwork(model.SerializeToString(), wrapped=False)
    assert contract_of(network, read_export(model), path).head == "raw"


def test_failures_of_the_runtime_are_one_sentence(tiny_detector: Callable[..., ModelProto]) -> None:
    """A graph that does not load and an image that does not fit."""
    with pytest.raises(ConversionError, match="cannot be loaded"):
        OnnxNetwork(b"text", wrapped=False)
    network = OnnxNetwork(tiny_detector(side=64).SerializeToString(), wrapped=False)
    with pytest.raises(ConversionError, match="fails on images of 32x64"):
        network(np.zeros((1, 32, 64, 3), np.uint8))
