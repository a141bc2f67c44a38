"""The answer's JSON: ultralytics' numbers, the Platform's shape, one release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BackendError, InvalidImageError, OverloadedError
from models.types import Answer, Detections, ReleaseId, Thresholds, Timings
from serve.protocols.native_answer import document, failure, server_timing, success, summary
from serve.protocols.native_options import Asked

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (480, 640)


def answer(boxes: NDArray[np.float32], *, timings: Timings | None = None, version: str = "7") -> Answer:
    """Return an answer with these boxes, all of class 1."""
    n = len(boxes)
    found = Detections(boxes, np.linspace(0.9, 0.1, n, dtype=np.float32), np.ones(n, np.int32))
    release = ReleaseId("checkout", version, "d" * 64)
    return Answer(found, SHAPE, timings or Timings(), release, 3, "fake", ("a", "b"), Thresholds())


def reference(found: Answer, *, normalize: bool, decimals: int) -> list[dict[str, Any]]:
    """Return what ultralytics 8.4's Results.summary does, transcribed; an integration test compares both."""
    height, width = found.shape if normalize else (1, 1)
    results = []
    rows = zip(found.detections.boxes, found.detections.scores, found.detections.classes, strict=True)
    for box, score, index in rows:
        corners = {}
        for j, (x, y) in enumerate(box.reshape(2, 2).tolist()):
            corners[f"x{j + 1}"] = round(x / width, decimals)
            corners[f"y{j + 1}"] = round(y / height, decimals)
        entry = {"name": found.names[index], "class": int(index), "confidence": round(score.item(), decimals)}
        results.append({**entry, "box": corners})
    return results


@given(
    st.lists(st.lists(st.floats(0, 16384, width=32), min_size=4, max_size=4), max_size=5),
    st.booleans(),
    st.integers(0, 10),
)
def test_results_are_ultralytics_summary(rows: list[list[float]], normalize: bool, decimals: int) -> None:  # noqa: FBT001
    """To the last digit, for every rounding and with boxes in pixels or normalized."""
    found = answer(np.array(rows, np.float32).reshape(-1, 4))
    expected = reference(found, normalize=normalize, decimals=decimals)
    assert summary(found, normalize=normalize, decimals=decimals) == expected
    assert orjson.loads(orjson.dumps(expected)) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_json_lacks_is_an_error(value: float) -> None:
    """NaN would become null; the client is told of the failure instead."""
    with pytest.raises(BackendError):
        summary(answer(np.full((1, 4), value, np.float32)), normalize=False, decimals=5)


def test_a_partly_failed_request_says_so_per_image() -> None:
    """A failed image has no results to mistake for an empty scene."""
    found = answer(np.array([[1, 2, 3, 4]], np.float32))
    value = document([InvalidImageError("broken"), found], Asked())
    images: Any = value["images"]
    assert images[0] == {"error": {"code": "invalid_image", "status": 400, "detail": "broken"}}
    assert images[1]["shape"] == (480, 640)
    assert value["metadata"] == {
        "imageCount": 2,
        "model": "checkout",
        "version": "7",
        "digest": "d" * 64,
        "generation": 3,
        "task": "detect",
        "backend": "fake",
        "thresholds": {"conf": 0.25, "iou": 0.7, "max_det": 300},
    }


def test_server_timing_shows_the_slowest_image_of_each_stage() -> None:
    """Images of one request run at the same time, so their times are not added."""
    empty = np.zeros((0, 4), np.float32)
    answers = [answer(empty, timings=Timings(1, 2, 3, 4)), answer(empty, timings=Timings(4, 3, 2, 1))]
    assert server_timing(answers, 12.345) == (
        "decode;dur=4.00, queue;dur=3.00, infer;dur=3.00, post;dur=4.00, total;dur=12.35"
    )


def test_success_names_the_release_in_its_headers() -> None:
    """Proxies and logs see the version without reading the body."""
    response = success([answer(np.zeros((0, 4), np.float32))], Asked(), total_ms=1.0)
    assert response.headers["x-model-version"] == "7"
    assert response.headers["x-weights-digest"] == "d" * 64
    assert orjson.loads(response.body)["images"][0]["results"] == []


def test_failure_is_the_first_image_s() -> None:
    """One status for the request, and every image's reason where there were several."""
    first, second = InvalidImageError("broken"), OverloadedError("full")
    assert "images" not in failure([first]).extra
    problem = failure([second, first])
    images: Any = problem.extra["images"]
    assert (problem.status, problem.headers["Retry-After"]) == (429, "1")
    assert [image["code"] for image in images] == ["overloaded", "invalid_image"]
