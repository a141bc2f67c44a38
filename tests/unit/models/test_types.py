"""The values that cross the wings are checked at birth."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import errors
from models.errors import InvalidOptionError, ReleaseFaultError, ReleaseRejectedError, SteelyardError
from models.types import Detections, DetectOptions, Thresholds


@given(conf=st.floats(allow_nan=True), iou=st.floats(allow_nan=True), max_det=st.integers(-5, 400))
def test_thresholds_hold_only_legal_values(conf: float, iou: float, max_det: int) -> None:
    """Whatever is given, either the thresholds are within their ranges or the error says what is not."""
    legal = 0 <= conf <= 1 and 0 <= iou <= 1 and 1 <= max_det <= 300
    if legal:
        assert Thresholds(conf, iou, max_det) == Thresholds(conf, iou, max_det)
    else:
        with pytest.raises(InvalidOptionError, match="outside"):
            Thresholds(conf, iou, max_det)


def test_options_fall_back_to_the_release() -> None:
    """What a request leaves open is the release's own threshold, and zero counts as given."""
    found = DetectOptions(conf=0.0, max_det=5).thresholds(Thresholds(conf=0.4, iou=0.6, max_det=100))
    assert found == Thresholds(conf=0.0, iou=0.6, max_det=5)


def test_negative_classes_are_refused() -> None:
    """A class id below zero is the client's mistake."""
    with pytest.raises(InvalidOptionError, match="classes"):
        DetectOptions(classes=frozenset({-1}))


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"),
    [
        (np.zeros((1, 4), np.float64), np.zeros(1, np.float32), np.zeros(1, np.int32)),
        (np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64)),
    ],
)
def test_detections_refuse_wrong_shapes_and_dtypes(boxes: object, scores: object, classes: object) -> None:
    """The message names the array, what was expected and what came."""
    with pytest.raises(ValueError, match=r"expected .* got .*This is a bug"):
        Detections(boxes, scores, classes)  # type: ignore[arg-type]


def test_no_detections_are_still_detections() -> None:
    """An empty result has length zero and the right dtypes."""
    assert len(Detections.empty()) == 0


@pytest.mark.parametrize("kind", [ReleaseRejectedError, ReleaseFaultError])
def test_a_release_error_survives_pickling(kind: type[errors.ReleaseError]) -> None:
    """Between processes the message, the step and whether it is permanent stay."""
    copy = pickle.loads(pickle.dumps(kind("no eyes", step="golden")))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.step, copy.permanent) == (kind, "no eyes", "golden", kind.permanent)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    """Every error class is drawn, and everything drawn exists."""
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    defined = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SteelyardError)
    }
    assert drawn == defined
