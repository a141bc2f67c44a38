"""The child's work, done here without its sandbox on graphs of a few nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from models.errors import ConversionError
from models.weights.conversion import main
from models.weights.onnx_network import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnx import ModelProto


@pytest.fixture
def convert(tmp_path: Path, picture: bytes) -> Callable[[ModelProto], dict[str, Any]]:
    """Return a function that converts a graph; its output folder is ``output`` below tmp_path."""
    (tmp_path / "00-bus.jpg").write_bytes(picture)
    (tmp_path / "output").mkdir()

    def run(model: ModelProto) -> dict[str, Any]:
        source = tmp_path / "source.onnx"
        source.write_bytes(model.SerializeToString())
        request = {
            "source": str(source),
            "format": "onnx",
            "pictures": [str(tmp_path / "00-bus.jpg")],
            "output": str(tmp_path / "output"),
            "network": "isolated",
        }
        return main(request, lambda *_: None)

    return run


@pytest.mark.parametrize("head", ["raw", "end2end"])
@pytest.mark.parametrize("side", [None, 64])
def test_a_graph_becomes_a_described_release(
    tiny_detector: Callable[..., ModelProto],
    convert: Callable[[ModelProto], dict[str, Any]],
    tmp_path: Path,
    head: str,
    side: int | None,
) -> None:
    """Both heads, dynamic and of a fixed size: contract, expectations and files."""
    result = convert(tiny_detector(head=head, side=side))
    assert (result["names"], result["head"], result["dynamic"], result["imgsz"]) == (
        ["apple", "pear"],
        head,
        side is None,
        64,
    )
    (golden,) = result["golden"]
    assert (golden["file"], golden["shape"], golden["classes"]) == ("golden/0-bus.jpg", [48, 64], [0, 1])
    assert result["parity"]["max_pixel"] == 0
    assert result["parity"]["network"] == "isolated"
    files = {path.relative_to(tmp_path / "output").as_posix() for path in (tmp_path / "output").rglob("*.*")}
    assert files == {"model.onnx", "golden/0-bus.jpg"}
    OnnxNetwork((tmp_path / "output" / "model.onnx").read_bytes(), wrapped=True)


def test_a_graph_that_is_sure_of_nothing_has_no_golden_image(
    tiny_detector: Callable[..., ModelProto], convert: Callable[[ModelProto], dict[str, Any]]
) -> None:
    """It can be registered, and the missing expectation keeps it from being promoted."""
    assert convert(tiny_detector(score=0.4))["golden"] == []


def test_a_graph_that_answers_nan_is_refused(
    tiny_detector: Callable[..., ModelProto], convert: Callable[[ModelProto], dict[str, Any]]
) -> None:
    """Among its weights."""
    with pytest.raises(ConversionError, match="NaN"):
        convert(tiny_detector(score=float("nan")))
