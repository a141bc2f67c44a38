"""Two answers of one image are paired box by box, each box once, the surest first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.compare import compare
from models.evidence import Pairs
from models.types import Detections


def seen(*boxes: tuple[float, int, tuple[float, float, float, float]]) -> Detections:
    """Return an answer of (score, class, box)."""
    return Detections(
        np.array([box for _, _, box in boxes], np.float32).reshape(-1, 4),
        np.array([score for score, _, _ in boxes], np.float32),
        np.array([class_id for _, class_id, _ in boxes], np.int32),
    )


BOX, NEAR, HALF, FAR = (0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 4.9), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("serving", "candidate", "expected"),
    [
        ((), (), Pairs(1, serving_empties=1, candidate_empties=1)),
        (((0.9, 0, BOX),), (), Pairs(1, 1, 0, candidate_empties=1)),
        ((), ((0.9, 0, BOX),), Pairs(1, 0, 1, serving_empties=1)),
        (((0.9, 0, BOX),), ((0.75, 0, NEAR),), Pairs(1, 1, 1, 1, 1, -150_000)),
        (((0.9, 0, BOX),), ((0.7, 1, NEAR),), Pairs(1, 1, 1, 1, 0)),
        (((0.9, 0, BOX),), ((0.9, 0, HALF),), Pairs(1, 1, 1)),
        (((0.9, 0, BOX),), ((0.9, 0, FAR),), Pairs(1, 1, 1)),
        (((0.9, 0, BOX),), ((0.9, 1, BOX), (0.5, 0, NEAR)), Pairs(1, 1, 2, 1, 1, -400_000)),
        (((0.9, 0, BOX), (0.8, 0, NEAR)), ((0.9, 0, NEAR),), Pairs(1, 2, 1, 1, 1, 0)),
        (((0.9, 0, BOX), (0.8, 1, BOX)), ((0.9, 1, BOX), (0.9, 2, BOX)), Pairs(1, 2, 2, 2, 1, 100_000)),
        (((0.9, 0, (5, 5, 5, 5)),), ((0.9, 0, (5, 5, 5, 5)),), Pairs(1, 1, 1)),
    ],
)
def test_pairs(serving: tuple, candidate: tuple, expected: Pairs) -> None:
    """One class and half the area in common make a match, another class only an overlap; no box serves twice."""
    assert compare(seen(*serving), seen(*candidate)) == expected


SIDE = st.floats(0.0, 100.0)
ANSWERS = st.lists(
    st.tuples(
        st.floats(0.0, 1.0),
        st.integers(0, 2),
        st.tuples(SIDE, SIDE, SIDE, SIDE).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    ),
    max_size=8,
).map(lambda boxes: seen(*sorted(boxes, key=lambda box: -box[0])))


@given(serving=ANSWERS, candidate=ANSWERS)
def test_no_box_is_used_twice(serving: Detections, candidate: Detections) -> None:
    """There are never more pairs than boxes on either side, nor more matches than overlaps."""
    pairs = compare(serving, candidate)
    assert pairs.matched <= pairs.overlapping <= min(len(serving), len(candidate))
    assert abs(pairs.score_shift) <= 1_000_001 * pairs.matched


@given(answer=ANSWERS)
def test_an_answer_agrees_with_itself(answer: Detections) -> None:
    """Every box that has an area is found again, with its own score."""
    pairs = compare(answer, answer)
    sides = answer.boxes[:, 2:].astype(float) - answer.boxes[:, :2]
    assert pairs.matched >= int((sides.prod(axis=1) > 1e-3).sum())
    assert pairs.serving_empties == pairs.candidate_empties == (len(answer) == 0)
