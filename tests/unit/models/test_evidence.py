"""Evidence adds up the same in any order, and its histograms tell quantiles within a bin."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from models.evidence import (
    FASTEST_S,
    LATENCY_BINS,
    LATENCY_EDGES_S,
    SCORE_BINS,
    Evidence,
    Pairs,
    Tally,
    latency_bin,
    merge,
    merge_tallies,
)

COUNT = st.integers(0, 10**6)
LATENCIES = st.lists(st.floats(FASTEST_S, 100.0), min_size=1, max_size=60)


def histogram(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Return histograms of that many bins with a few values."""
    return st.dictionaries(st.integers(0, length - 1), COUNT, max_size=5).map(
        lambda counts: tuple(counts.get(index, 0) for index in range(length))
    )


TALLIES = st.builds(Tally, COUNT, COUNT, COUNT, COUNT, histogram(LATENCY_BINS), histogram(SCORE_BINS))
PAIRS = st.builds(
    Pairs, *[COUNT] * 5, st.integers(-(10**9), 10**9), candidate_empties=COUNT, serving_empties=COUNT, failed=COUNT
)
EVIDENCE = st.builds(Evidence, TALLIES, TALLIES, PAIRS)


def tally_of(latencies: list[float]) -> Tally:
    """Return the tally of images that took so many seconds."""
    counts = [0] * LATENCY_BINS
    for seconds in latencies:
        counts[latency_bin(seconds)] += 1
    return Tally(images=len(latencies), latency=tuple(counts))


@given(one=EVIDENCE, two=EVIDENCE, three=EVIDENCE)
def test_merging_knows_no_order(one: Evidence, two: Evidence, three: Evidence) -> None:
    """Merging is associative and commutative, and empty evidence adds nothing."""
    assert merge(one, merge(two, three)) == merge(merge(one, two), three)
    assert merge(one, two) == merge(two, one)
    assert merge(one, Evidence()) == one


def test_every_field_is_merged() -> None:
    """No count is forgotten: what is one in both is two in the sum."""
    tally = Tally(1, 1, 1, 1, (1,) * LATENCY_BINS, (1,) * SCORE_BINS)
    pairs = Pairs(*[1] * len(Pairs.__slots__))
    both = merge(Evidence(tally, tally, pairs), Evidence(tally, tally, pairs))
    assert both.pairs == Pairs(*[2] * len(Pairs.__slots__))
    assert both.serving == both.candidate == Tally(2, 2, 2, 2, (2,) * LATENCY_BINS, (2,) * SCORE_BINS)


@given(one=LATENCIES, two=LATENCIES, quantile=st.floats(0.0, 1.0))
def test_a_merged_quantile_is_that_of_the_union_within_a_bin(
    one: list[float], two: list[float], quantile: float
) -> None:
    """The histogram's quantile lies between the true one and 9 % above it."""
    union = sorted(one + two)
    true = union[max(1, math.ceil(quantile * len(union))) - 1]
    told = merge_tallies(tally_of(one), tally_of(two)).latency_s(quantile)
    assert true <= told <= true * 2 ** (1 / 8) * (1 + 1e-9)


@given(latencies=LATENCIES, limit=st.floats(FASTEST_S, 100.0))
def test_slower_than_counts_only_what_is(latencies: list[float], limit: float) -> None:
    """It never counts an image that was as fast, nor misses one that took a bin longer."""
    told = tally_of(latencies).slower_than(limit)
    assert told <= sum(seconds > limit for seconds in latencies)
    assert told >= sum(seconds > limit * 2 ** (1 / 8) * (1 + 1e-9) for seconds in latencies)


def test_the_edges_of_time_have_bins() -> None:
    """Nothing is too fast or too slow to be counted."""
    assert latency_bin(0.0) == latency_bin(FASTEST_S) == 0
    assert latency_bin(LATENCY_EDGES_S[-1]) == LATENCY_BINS - 2
    assert latency_bin(math.inf) == LATENCY_BINS - 1
    assert tally_of([1e9]).latency_s(0.5) == math.inf
    assert Tally().latency_s(0.5) == 0.0


def test_rates_of_nothing_are_harmless() -> None:
    """Without images no share divides by zero, and nothing speaks against the candidate."""
    nothing = Evidence()
    assert (nothing.serving.error_rate, nothing.serving.empty_rate, nothing.canaried) == (0.0, 0.0, 0)
    pairs = nothing.pairs
    assert (pairs.found_again, pairs.class_agreement, pairs.mean_score_shift) == (1.0, 1.0, 0.0)


def test_what_clients_were_shown_is_told_from_the_shadow() -> None:
    """Of the candidate's images those of the pairs were never answered to anybody."""
    evidence = Evidence(candidate=Tally(images=30, errors=5), pairs=Pairs(images=20, failed=2))
    assert evidence.canaried == 13
    assert replace(evidence, pairs=Pairs(images=40)).canaried == 0


@given(evidence=EVIDENCE)
def test_it_travels(evidence: Evidence) -> None:
    """A report may carry it: pickling keeps it, in a few kilobytes."""
    packed = pickle.dumps(evidence)
    assert pickle.loads(packed) == evidence  # noqa: S301 - our own bytes
    assert len(packed) < 5000
