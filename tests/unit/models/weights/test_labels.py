"""Label files: boxes and outlines as Ultralytics takes them, everything else refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.errors import EvaluationError
from models.weights.labels import read_labels

if TYPE_CHECKING:
    from pathlib import Path


def _file(folder: Path, text: str) -> Path:
    path = folder / "a.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_boxes_come_back_once_each(tmp_path: Path) -> None:
    """A repeated line is one label; a byte-order mark and blank lines are nothing."""
    classes, boxes = read_labels(
        _file(tmp_path, "\ufeff1 0.5 0.5 0.2 0.4\n\n0 0.1 0.1 0.1 0.1\n1 0.5 0.5 0.2 0.4\n"), 2
    )
    assert (classes.dtype, classes.tolist()) == (np.int32, [1, 0])
    assert boxes.tolist() == [[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]


def test_an_outline_counts_as_the_box_around_it(tmp_path: Path) -> None:
    """Three points of a triangle."""
    classes, boxes = read_labels(_file(tmp_path, "0 0.2 0.2 0.6 0.2 0.4 0.8\n"), 1)
    assert classes.tolist() == [0]
    assert boxes == pytest.approx(np.array([[0.4, 0.5, 0.4, 0.6]]))


def test_an_image_without_labels_is_background(tmp_path: Path) -> None:
    """Be the file missing or empty."""
    for label in (None, _file(tmp_path, " \n")):
        classes, boxes = read_labels(label, 1)
        assert (classes.shape, boxes.shape) == ((0,), (0, 4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.2", "neither a box"),
        ("0 0.5 0.5 0.2 0.2 0.2", "neither a box"),
        ("0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.2 0.3 0.3", "neither a box"),
        ("apple 0.5 0.5 0.2 0.2", "something else than numbers"),
        ("0 nan 0.5 0.2 0.2", "not finite"),
        ("0 0.5 0.5 1.2 0.2", "outside its image"),
        ("0 0.5 0.5 -0.005 0.2", "outside its image"),
        ("0 240 120 20 20", "outside its image"),
        ("0.5 0.5 0.5 0.2 0.2", "no whole number"),
        ("-1 0.5 0.5 0.2 0.2", "no whole number"),
        ("2 0.5 0.5 0.2 0.2", "labels class 2, and the version has classes 0 to 1"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    """Leaving the image out, as training does, would make another score of it."""
    with pytest.raises(EvaluationError, match=words) as refused:
        read_labels(_file(tmp_path, text), 2)
    assert "a.txt" in str(refused.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Whatever its bytes are."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match=r"a\.txt"):
        read_labels(path, 1)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_labels(tmp_path / "none.txt", 1)
