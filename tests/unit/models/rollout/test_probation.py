"""A version on probation goes as soon as it is clearly worse than the hour before, and not sooner."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evidence import LATENCY_BINS, SCORE_BINS, Evidence, Tally, latency_bin, merge
from models.rollout.probation import ProbationLimits, judge, passed

LIMITS = ProbationLimits(latency_factor=2.0)


def hour(
    images: int, *, errors: int = 0, empties: int = 0, seconds: float = 0.02, score: int = 15, boxes: int | None = None
) -> Evidence:
    """Return evidence of so many images, all as fast, with boxes of one score."""
    latency, scores = [0] * LATENCY_BINS, [0] * SCORE_BINS
    latency[latency_bin(seconds)] = images
    scores[score] = 5 * images if boxes is None else boxes
    return Evidence(Tally(images, errors, images, empties, tuple(latency), tuple(scores)))


BEFORE = hour(5000, errors=2, empties=100)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (BEFORE, Evidence(), None),
        (BEFORE, hour(1000, empties=20), None),
        (BEFORE, hour(0, errors=3), None),
        (BEFORE, hour(0, errors=4), "4 of 4 images failed"),
        (Evidence(), hour(0, errors=4), "4 of 4 images failed"),
        (BEFORE, hour(100, empties=100, boxes=0), "100 of 100 answers are empty"),
        (BEFORE, hour(49, empties=49, boxes=0), None),
        (Evidence(), hour(100, empties=100, seconds=1.0), None),
        (BEFORE, hour(50, seconds=0.05), "50 of 50 images took longer than"),
        (BEFORE, hour(49, seconds=0.05), None),
        (BEFORE, hour(100, seconds=0.03), None),
        (BEFORE, hour(100, score=5), "lie 0.500 below"),
        (BEFORE, hour(100, score=19), None),
        (BEFORE, hour(100, score=5, boxes=499), None),
        (hour(60, boxes=499), hour(100, score=5), None),
    ],
)
def test_judgements(before: Evidence, after: Evidence, expected: str | None) -> None:
    """Each kind of harm is named with its numbers once there is enough of it; none is seen in too little."""
    reason = judge(before, after, 1.0, LIMITS)
    assert reason is None if expected is None else re.search(expected, reason or "")


def test_probation_ends() -> None:
    """After its window a version is never sent back; until then it is not passed."""
    bad = hour(0, errors=100)
    assert judge(BEFORE, bad, LIMITS.window_s, LIMITS) is not None
    assert not passed(LIMITS.window_s, LIMITS)
    assert judge(BEFORE, bad, LIMITS.window_s + 0.1, LIMITS) is None
    assert passed(LIMITS.window_s + 0.1, LIMITS)
    assert passed(0.1, ProbationLimits(window_s=0.0))


@given(images=st.integers(0, 500), errors=st.integers(0, 500), more=st.integers(0, 500))
def test_more_failures_never_save_a_version(images: int, errors: int, more: int) -> None:
    """Who has to go has to go with still more failures, too."""
    if judge(BEFORE, hour(images, errors=errors), 1.0, LIMITS) is not None:
        assert judge(BEFORE, hour(images, errors=errors + more), 1.0, LIMITS) is not None


@given(images=st.integers(50, 3000), replicas=st.integers(1, 8))
def test_the_same_hour_again_is_no_breach(images: int, replicas: int) -> None:
    """A version that does as the one before stays, however many replicas tell of it."""
    total = Evidence()
    for _ in range(replicas):
        total = merge(total, hour(images, empties=images // 50))
    assert judge(BEFORE, total, 1.0, LIMITS) is None
