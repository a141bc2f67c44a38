"""The child of an evaluation: its own process's part, on a tiny network and real pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from models.errors import ConversionError
from models.types import Contract, Detections
from models.weights import onnx_graph, validation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

CONTRACT = Contract("detect", ("apple", "pear"), 32, 64, "end2end")
TRUTH = "0 0.25 0.25 0.1875 0.15625\n1 0.625 0.375 0.3125 0.3125\n"
"""The two boxes that the tiny detector sees in every picture of 64 x 64 pixels."""


@pytest.fixture
def request_for(
    tmp_path: Path, tiny_detector: Callable[..., onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Return a function that makes a request of one grey picture with the labels given."""
    monkeypatch.chdir(tmp_path)
    model = tiny_detector(head="end2end")
    onnx_graph.wrap(model, {})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    def build(labels: str, picture: bytes | None = None) -> dict[str, Any]:
        image, label = tmp_path / "a.png", tmp_path / "a.txt"
        grey = cv2.imencode(".png", np.full((64, 64, 3), 90, np.uint8))[1].tobytes()
        image.write_bytes(grey if picture is None else picture)
        label.write_text(labels, encoding="utf-8")
        contract = asdict(CONTRACT) | {"names": list(CONTRACT.names)}
        return {"onnx": str(tmp_path / "model.onnx"), "contract": contract, "samples": [[str(image), str(label)]]}

    return build


def test_what_the_network_sees_is_scored(request_for: Callable[..., dict[str, Any]]) -> None:
    """Boxes where the labels are score as well as can be; boxes elsewhere score nothing."""
    steps: list[tuple[str, float]] = []
    right = validation.main(request_for(TRUTH), lambda stage, done: steps.append((stage, done)))
    wrong = validation.main(request_for("0 0.8 0.8 0.1 0.1\n"), lambda *_: None)
    assert right["map50_95"] == pytest.approx(0.995)
    assert (right["boxes"], wrong["boxes"]) == (2, 1)
    assert wrong["map50"] == 0.0
    assert "ultralytics" in right["method"]
    assert steps[-1] == ("evaluate", 1.0)


def test_a_wrong_class_is_a_miss(request_for: Callable[..., dict[str, Any]]) -> None:
    """One of two classes is seen where the other is labelled."""
    swapped = "1 0.25 0.25 0.1875 0.15625\n0 0.625 0.375 0.3125 0.3125\n"
    assert validation.main(request_for(swapped), lambda *_: None)["map50"] == 0.0


@pytest.mark.parametrize(
    ("labels", "picture", "words"),
    [
        (TRUTH, b"no picture", r"The image a\.png cannot be read"),
        ("5 0.5 0.5 0.1 0.1\n", None, "labels class 5"),
        ("", None, "labels no box at all"),
    ],
)
def test_each_refusal_is_a_sentence(
    request_for: Callable[..., dict[str, Any]], labels: str, picture: bytes | None, words: str
) -> None:
    """The sandbox hands it to whoever asked."""
    with pytest.raises(ConversionError, match=words):
        validation.main(request_for(labels, picture), lambda *_: None)


def test_the_score_is_the_mean_over_classes_that_are_labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class found, one missed altogether, one nowhere labelled: half of what can be had."""
    monkeypatch.chdir(tmp_path)
    scorer = validation.Scorer(("a", "b", "c"))
    box = np.array([[10, 10, 50, 50]], np.float32)
    scorer.add("1", Detections(box, np.ones(1, np.float32), np.zeros(1, np.int32)), np.zeros(1, np.int32), box)
    scorer.add("2", Detections.empty(), np.ones(1, np.int32), box)
    map50_95, map50 = scorer.score()
    assert map50_95 == pytest.approx(0.995 / 2)
    assert map50 == pytest.approx(0.995 / 2)
