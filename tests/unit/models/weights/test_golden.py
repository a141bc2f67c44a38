"""The sight test: what may serve and what may not, in numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BackendError, InvalidImageError, ReleaseRejectedError
from models.types import Contract, Detections, GoldenImage, Release, Thresholds
from models.weights.golden import box_iou, check_sight, match

Boxes = Callable[..., Detections]


def _release(expected: list[Detections], *, digest: str = "a", names: tuple[str, ...] = ("x", "y")) -> Release:
    return Release(
        model="m",
        version="7",
        digest=digest * 64,
        contract=Contract("detect", names, 32, 320, "end2end"),
        thresholds=Thresholds(),
        files={},
        golden=tuple(GoldenImage(f"{index}.jpg", bytes([index]), boxes) for index, boxes in enumerate(expected)),
    )


def _grid(boxes: Boxes, count: int, *, score: float = 0.8, shift: float = 0.0) -> Detections:
    return boxes(*((i * 50 + shift, 0 + shift, i * 50 + 40 + shift, 40 + shift, score, 0) for i in range(count)))


def test_a_release_that_sees_what_it_should_passes_with_its_numbers(boxes: Boxes) -> None:
    """Exact agreement on two images."""
    seen = [_grid(boxes, 3), _grid(boxes, 2)]
    report = check_sight(_release(seen), lambda data: seen[data[0]])
    assert (report.images, report.expected, report.matched) == (2, 5, 5)


def test_a_release_without_golden_images_is_refused() -> None:
    """What cannot prove its sight may not serve."""
    with pytest.raises(ReleaseRejectedError, match="no golden image") as caught:
        check_sight(_release([]), lambda _: Detections.empty())
    assert caught.value.step == "golden"


def test_a_blind_release_is_refused(boxes: Boxes) -> None:
    """Zeroed weights answer with no box at all, or with boxes that are sure of nothing."""
    release = _release([_grid(boxes, 3)])
    with pytest.raises(ReleaseRejectedError, match="blind"):
        check_sight(release, lambda _: Detections.empty())
    with pytest.raises(ReleaseRejectedError, match="blind"):
        check_sight(release, lambda _: _grid(boxes, 3, score=0.49))


def test_non_finite_boxes_are_refused(boxes: Boxes) -> None:
    """NaN compares false with everything, so it is looked for by name."""
    release = _release([_grid(boxes, 1)])
    with pytest.raises(ReleaseRejectedError, match="blind"):
        check_sight(release, lambda _: boxes((float("nan"), 0, 1, 1, 0.9, 0)))


@pytest.mark.parametrize("error", [BackendError("holds NaN"), InvalidImageError("broken")])
def test_a_failing_detection_rejects_the_release(boxes: Boxes, error: Exception) -> None:
    """An error in the sight test is an answer: no."""

    def fail(_: bytes) -> Detections:
        raise error

    with pytest.raises(ReleaseRejectedError, match=str(error)):
        check_sight(_release([_grid(boxes, 1)]), fail)


@pytest.mark.parametrize(
    ("expected", "missing", "passes"),
    [(1, 1, False), (2, 1, True), (5, 1, True), (5, 2, False), (40, 2, True), (40, 3, False)],
)
def test_how_many_boxes_may_be_lost(boxes: Boxes, expected: int, missing: int, *, passes: bool) -> None:
    """One, or five in a hundred; never all."""
    wanted, found = _grid(boxes, expected), _grid(boxes, expected - missing)
    if missing == expected:
        found = boxes((900, 900, 950, 950, 0.9, 0))
    if passes:
        assert check_sight(_release([wanted]), lambda _: found).matched == expected - missing
    else:
        with pytest.raises(ReleaseRejectedError, match=f"{expected - missing} of {expected}"):
            check_sight(_release([wanted]), lambda _: found)


def test_boxes_near_the_threshold_are_not_demanded(boxes: Boxes) -> None:
    """A lower precision may lose what was barely there."""
    wanted = boxes((0, 0, 40, 40, 0.9, 0), (50, 0, 90, 40, 0.27, 0), (100, 0, 140, 40, 0.28, 0))
    assert check_sight(_release([wanted]), lambda _: boxes((0, 0, 40, 40, 0.9, 0))).expected == 1


def test_a_moved_or_renamed_box_does_not_count(boxes: Boxes) -> None:
    """The overlap must be 0.9 and the class the same."""
    release = _release([_grid(boxes, 4)])
    with pytest.raises(ReleaseRejectedError, match="0 of 4"):
        check_sight(release, lambda _: _grid(boxes, 4, shift=4.0))
    with pytest.raises(ReleaseRejectedError, match="0 of 4"):
        check_sight(release, lambda _: boxes(*((i * 50, 0, i * 50 + 40, 40, 0.8, 1) for i in range(4))))


def test_the_serving_versions_pictures_count_too(boxes: Boxes) -> None:
    """A candidate that agrees only with itself is refused when it misses most of what the serving version sees."""
    own, theirs = _grid(boxes, 2), _grid(boxes, 4)
    candidate, serving = _release([own]), _release([theirs, theirs], digest="b")
    found = {0: own}
    with pytest.raises(ReleaseRejectedError, match="3 of the 8 boxes that version 7"):
        check_sight(candidate, lambda data: found.get(data[0], _grid(boxes, 1)), serving)
    report = check_sight(candidate, lambda data: found.get(data[0], _grid(boxes, 2)), serving)
    assert (report.serving_expected, report.serving_matched) == (8, 4)


def test_the_serving_version_says_nothing_about_other_classes(boxes: Boxes) -> None:
    """With other class names its boxes mean something else."""
    own = _grid(boxes, 2)
    serving = _release([_grid(boxes, 9)], digest="b", names=("p", "q"))
    assert check_sight(_release([own]), lambda _: own, serving).serving_expected == 0


def test_each_found_box_serves_once(boxes: Boxes) -> None:
    """Two expected boxes at one place need two found ones."""
    pair = boxes((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))
    assert match(pair, boxes((0, 0, 10, 10, 0.9, 0)), iou=0.9).tolist() == [True, False]
    assert match(pair, Detections.empty(), iou=0.9).tolist() == [False, False]


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1, max_size=8))
def test_overlap_is_symmetric_and_whole_with_itself(corners: list[tuple[int, int, int, int]]) -> None:
    """Law: IoU lies in 0 to 1, is symmetric, and is 1 of a box of some area with itself."""
    table = np.array([(x, y, x + w + 1, y + h + 1) for x, y, w, h in corners], np.float32)
    overlap = box_iou(table, table)
    assert ((overlap >= 0) & (overlap <= 1 + 1e-9)).all()
    assert np.allclose(overlap, overlap.T)
    assert np.allclose(np.diag(overlap), 1)
