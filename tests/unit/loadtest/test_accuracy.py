"""The measurement of accuracy: what it sends and scores, and when it says that the goal was met."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import accuracy
import numpy as np
import pytest
from accuracy import Row
from ultralytics_val import Score, Truth, Ultralytics, score

from models.types import Detections
from serve.client_answers import Box, DetectAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

SQUARE = np.array([[10, 10, 50, 50], [60, 20, 90, 80]], np.float32)


def answered(digest: Callable[[bytes], str]) -> Callable[[bytes], DetectAnswer]:
    """Return a detector that finds one box, and whose release depends on the bytes."""

    def detect(data: bytes) -> DetectAnswer:
        box = Box("apple", 3, 0.5, 1.0, 2.0, 3.0, float(len(data)))
        body = {"metadata": {"backend": "fake"}}
        return DetectAnswer((box,), (4, 4), {}, "till", "1", digest(data), body)

    return detect


def row(precision: str, served: float) -> Row:
    """Return a row of a service that scores ``served`` where ``val`` scores 46 and 47 as predict."""
    steps = (Score(46.0, 60.0), Score(46.5, 60.0), Score(47.0, 60.0), Score(47.0, 61.0))
    return Row("w.pt", precision, "fake", "d", Score(served, 62.0), steps)


def test_every_picture_is_asked_and_its_boxes_keep_their_order(tmp_path: Path) -> None:
    """Boxes come back by file name as arrays in the answer's own order."""
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    found, last = accuracy.ask(answered(lambda _: "d"), sorted(tmp_path.iterdir()))
    assert found["2.jpg"].boxes.tolist() == [[1.0, 2.0, 3.0, 2.0]]
    assert (found["1.jpg"].scores.tolist(), found["1.jpg"].classes.tolist()) == ([0.5], [3])
    assert accuracy.backend_of(last) == "fake"


def test_answers_of_two_releases_are_no_measurement(tmp_path: Path) -> None:
    """A promotion half-way would mix two sets of weights in one number."""
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    with pytest.raises(ValueError, match="release changed"):
        accuracy.ask(answered(lambda data: str(len(data))), sorted(tmp_path.iterdir()))


def test_an_answer_without_boxes_is_empty_arrays() -> None:
    """Nothing seen is an answer too."""
    assert accuracy.boxes(()).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("precision", "served", "verdict"),
    [("fp32", 47.29, "met"), ("fp32", 46.69, "missed"), ("fp32", 47.31, "missed"), ("auto", 40.0, "no goal")],
)
def test_the_goal_holds_either_way_and_in_fp32_only(precision: str, served: float, verdict: str) -> None:
    """More than 0.3 points above is as unfaithful as below."""
    assert row(precision, served).verdict() == verdict


def test_the_tables_name_both_distances() -> None:
    """The distance from ``val`` as it is stands beside the one that the goal is on."""
    text = accuracy.table([row("fp32", 47.1)])
    assert "| w.pt | fp32 | 47.10 (62.00) | 47.00 (61.00) | +0.10 | 46.00 (60.00) | +1.10 | met |" in text
    assert "| w.pt | 46.00 (60.00) | 46.50 (60.00) | 47.00 (60.00) | 47.00 (61.00) |" in text


def test_the_score_is_full_for_the_labels_themselves_and_falls_with_what_is_missed() -> None:
    """Perfect boxes score 99.5 as in ``val``, half of the boxes about half, boxes of another class nothing."""
    pytest.importorskip("ultralytics")
    truth = {"a": Truth((100, 100), SQUARE, np.array([0, 1], np.int32))}
    sure = np.array([0.9, 0.8], np.float32)
    assert score({"a": Detections(SQUARE, sure, np.array([0, 1], np.int32))}, truth).map50_95 == pytest.approx(99.5)
    half = score({"a": Detections(SQUARE[:1], sure[:1], np.array([0], np.int32))}, truth)
    assert half.map50_95 == pytest.approx(99.5 / 2)
    assert score({"a": Detections(SQUARE, sure, np.array([1, 0], np.int32))}, truth) == Score(0.0, 0.0)


def test_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    """A folder that is no labelled data set is told so before anything is started."""
    with pytest.raises(ValueError, match="no picture has labels"):
        Ultralytics(tmp_path / "w.pt", [tmp_path / "images" / "a.jpg"])


def test_a_running_service_needs_its_own_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """Two sets of weights cannot both be what one address serves."""
    here = str(Path(__file__))
    with pytest.raises(SystemExit):
        accuracy.main(["--url", "http://127.0.0.1:1", "--weights", here, here])
    assert "--url needs the one --weights" in capsys.readouterr().err
