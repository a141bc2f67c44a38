"""Differences count where they exceed both their limit and chance."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.evidence import LATENCY_BINS, SCORE_BINS, latency_bin
from models.rollout.evidence import (
    Evidence,
    Pairs,
    Tally,
    emptier,
    lower_bound,
    measured,
    more_errors,
    score_fall,
    slower,
)

SCORES = st.lists(st.integers(0, 1000), min_size=SCORE_BINS, max_size=SCORE_BINS).map(tuple)


def taking(**images: int) -> Tally:
    """Return a tally of so many images of so many milliseconds each, as ``ms20=100``."""
    counts = [0] * LATENCY_BINS
    for name, count in images.items():
        counts[latency_bin(int(name[2:]) / 1e3)] += count
    return Tally(images=sum(images.values()), latency=tuple(counts))


@given(trials=st.integers(1, 10**6), hits=st.integers(0, 10**6))
def test_the_bound_lies_below_the_share_and_rises_with_it(trials: int, hits: int) -> None:
    """It never claims more than was seen, and one more hit never lowers it."""
    assume(hits < trials)
    assert 0.0 <= lower_bound(hits, trials) <= hits / trials + 1e-12
    assert lower_bound(hits + 1, trials) >= lower_bound(hits, trials)
    assert lower_bound(0, trials) == pytest.approx(0.0, abs=1e-12)


@given(share=st.floats(0.05, 0.95), trials=st.integers(20, 10_000))
def test_the_bound_tightens_with_evidence(share: float, trials: int) -> None:
    """Ten times as many images of the same share prove more."""
    hits = round(share * trials)
    assume(0 < hits < trials)
    assert lower_bound(10 * hits, 10 * trials) > lower_bound(hits, trials)


@pytest.mark.parametrize(
    ("before", "after", "breach"),
    [
        (Tally(1000), Tally(1000), False),
        (Tally(1000), Tally(0, 3), False),
        (Tally(1000), Tally(0, 4), True),
        (Tally(), Tally(0, 4), True),
        (Tally(1000), Tally(996, 4), False),
        (Tally(1000), Tally(950, 50), True),
        (Tally(900, 100), Tally(950, 50), False),
        (Tally(900, 100), Tally(800, 200), True),
    ],
)
def test_errors_are_held_against_those_before(before: Tally, after: Tally, breach: bool) -> None:  # noqa: FBT001
    """A few failures are an accident, a clear rise is not, whatever the level was."""
    assert (more_errors(before, after, 0.01) is not None) == breach


@given(errors=st.integers(0, 200), more=st.integers(0, 200), tried=st.integers(200, 400))
def test_more_errors_never_mend_a_breach(errors: int, more: int, tried: int) -> None:
    """Of as many images, more failures are never better."""
    before = Tally(1000, 10)
    fewer, worse = min(errors, tried), min(errors + more, tried)
    if more_errors(before, Tally(tried - fewer, fewer), 0.01) is not None:
        assert more_errors(before, Tally(tried - worse, worse), 0.01) is not None


@pytest.mark.parametrize(
    ("before", "after", "breach"),
    [
        ((0, 100), (0, 100), False),
        ((0, 100), (100, 100), True),
        ((90, 100), (100, 100), False),
        ((0, 100), (15, 100), False),
        ((30, 100), (300, 1000), False),
        ((30, 100), (500, 1000), True),
        ((30, 100), (7, 10), False),
    ],
)
def test_empty_answers_need_a_clear_rise(before: tuple[int, int], after: tuple[int, int], breach: bool) -> None:  # noqa: FBT001
    """A blind version is noticed, a quiet street is not."""
    assert (emptier(before, after, 0.1) is not None) == breach


@pytest.mark.parametrize(
    ("before", "after", "breach"),
    [
        (taking(ms20=1000), taking(ms20=1000), False),
        (taking(ms20=1000), taking(ms60=50), True),
        (taking(ms20=1000), taking(ms20=50, ms200=3), False),
        (taking(ms20=1000), taking(ms20=900, ms200=100), True),
        (taking(ms20=980, ms100=20), taking(ms20=900, ms100=100), False),
        (taking(ms20=1000), taking(ms30=1000), False),
        (taking(ms1=1000), taking(ms15=1000), False),
        (taking(ms1=1000), taking(ms30=1000), True),
        (taking(ms20=1000), Tally(), False),
    ],
)
def test_a_slow_tail_counts_once_it_is_clear(before: Tally, after: Tally, breach: bool) -> None:  # noqa: FBT001
    """What takes twice the former 99th percentile may happen now and then, not always; a few milliseconds always."""
    assert (slower(before, after, 2.0) is not None) == breach


@given(one=SCORES, other=SCORES)
def test_a_fall_is_a_share_that_knows_its_direction(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """It lies in 0 to 1, does not depend on how much was seen, and falls less rises are the difference of the means."""
    assume(sum(one) and sum(other))
    fall, rise = score_fall(one, other), score_fall(other, one)
    assert 0.0 <= fall <= 1.0
    assert score_fall(one, one) == pytest.approx(0.0, abs=1e-9)
    assert score_fall(tuple(3 * count for count in one), other) == pytest.approx(fall, abs=1e-9)
    means = [sum(place * count for place, count in enumerate(each)) / sum(each) / SCORE_BINS for each in (one, other)]
    assert fall - rise == pytest.approx(means[0] - means[1], abs=1e-9)


def test_the_fall_of_known_histograms() -> None:
    """Half of the mass down one bin of two is a quarter; the way up is none."""
    assert score_fall((0, 9), (5, 5)) == pytest.approx(0.25)
    assert score_fall((5, 5), (0, 9)) == 0.0
    assert score_fall((0, 0, 0, 4), (7, 0, 0, 0)) == pytest.approx(0.75)
    assert score_fall((0, 0), (1, 0)) == 0.0


def test_the_record_holds_finite_figures() -> None:
    """Even a latency beyond all bins becomes a number that JSON knows."""
    beyond = Tally(images=1, latency=(0,) * (LATENCY_BINS - 1) + (1,))
    figures = measured(Evidence(beyond, Tally(), Pairs(images=3, serving_boxes=4, matched=1, overlapping=2)))
    assert all(math.isfinite(figure) for figure in figures.values())
    assert (figures["compared"], figures["found_again"], figures["class_agreement"]) == (3.0, 0.25, 0.5)
