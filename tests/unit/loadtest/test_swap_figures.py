"""The arithmetic of swap measurements: windows, gaps, ratios with their interval, trends, promises."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import swap_table
from hypothesis import given
from hypothesis import strategies as st
from swap_figures import (
    EDGES_MS,
    LEAST_SAMPLES,
    Intervals,
    bootstrap,
    first_answer,
    grown,
    growth,
    histogram,
    longest_gap,
    promises,
    quartiles,
    summarize,
    within,
)
from swap_pieces import MACHINE, a_piece, a_swap


def broken(piece: dict[str, Any]) -> list[str]:
    """Return the promises that ``piece`` breaks."""
    return [each.promise for each in promises(summarize([piece], resamples=9)) if each.met is False]


def test_a_window_holds_what_was_due_in_it() -> None:
    """Its begin belongs to it, its end to the next one."""
    moments = [(0.5, 1.0), (1.0, 2.0), (1.5, 3.0), (2.0, 4.0)]
    assert within(moments, (1.0, 2.0)) == [2.0, 3.0]
    assert within(moments, (3.0, 4.0)) == []


@given(st.lists(st.floats(0, 30), min_size=1), st.lists(st.floats(0, 30), min_size=1, max_size=6))
def test_neighbouring_windows_share_nothing_and_lose_nothing(dues: list[float], edges: list[float]) -> None:
    """Every request is in exactly one of the windows between neighbouring edges."""
    moments = sorted((due, due) for due in dues)
    bounds = [-1.0, *sorted(edges), 31.0]
    found = [each for window in pairwise(bounds) for each in within(moments, window)]
    assert found == sorted(dues)


def test_the_longest_gap_may_reach_over_the_windows_edges() -> None:
    """A stall counts where it touches the window, however little of it lies inside."""
    done = [0.0, 1.0, 1.1, 1.2, 5.0, 5.1]
    assert longest_gap(done, (1.05, 1.15)) == pytest.approx(0.1)
    assert longest_gap(done, (1.15, 1.3)) == pytest.approx(3.8)
    assert longest_gap(done, (2.0, 3.0)) == pytest.approx(3.8)
    assert longest_gap([1.0], (0.0, 2.0)) is None


def test_the_interval_of_the_ratio_holds_the_ratio() -> None:
    """Equal windows give one; twice as slow windows give two; without answers there is none."""
    quiet = bootstrap([a_swap(number) for number in range(20)], resamples=50)
    assert quiet == Intervals((20.0, 20.0), (20.0, 20.0), (1.0, 1.0))
    slow = [a_swap(number, during=[20.0] * 59 + [40.0]) for number in range(20)]
    assert bootstrap(slow, resamples=50) == Intervals((40.0, 40.0), (20.0, 20.0), (2.0, 2.0))
    assert bootstrap([a_swap(0, during=[])]) is None
    chance = random.Random(1)  # noqa: S311 - latencies are no secrets
    mixed = [a_swap(n, during=[chance.expovariate(0.1) for _ in range(60)]) for n in range(30)]
    found, whole = bootstrap(mixed, resamples=100), summarize([a_piece(mixed)], resamples=9)
    assert found is not None
    assert found.ratio[0] < whole["ratio"] < found.ratio[1]
    assert found.during[0] <= whole["p99_ms"][0] <= found.during[1]


def test_the_first_answer_counts_from_the_hint_but_for_times_in_which_nobody_asked() -> None:
    """A request that waited for the flip counts whole; one that came after it counts from the flip on."""
    assert first_answer([(1.0, 3.1), (2.5, 3.2)], asked=2.0, flipped=3.0) == pytest.approx(1.1)
    assert first_answer([(3.5, 3.6)], asked=2.0, flipped=3.0) == pytest.approx(1.1)
    assert first_answer([], asked=2.0, flipped=3.0) is None


def test_quartiles_are_of_single_windows() -> None:
    """Each window has its own p99; one window has no spread."""
    swaps = [a_swap(number, during=[float(number)] * 100) for number in range(5)]
    assert quartiles(swaps, "during") == (1.0, 2.0, 3.0)
    assert quartiles(swaps[:1], "during") is None


def test_growth_is_of_the_second_half() -> None:
    """What rises at first and then stays does not grow; a leak at every swap does, noise and a single step do not."""
    chance = random.Random(0)  # noqa: S311 - sizes are no secrets
    settled = [100.0 + 5 * number for number in range(30)] + [250.0] * 30
    assert growth(settled) == 0.0
    leak = [200.0 + 2 * number for number in range(60)]
    assert growth(leak) == pytest.approx(58 / 289)
    noise = [200.0 + chance.uniform(-1, 1) for _ in range(60)]
    assert abs(growth(noise) or 1.0) < 0.005
    spike = [200.0] * 45 + [300.0] + [200.0] * 14
    assert growth(spike) == 0.0
    assert growth([1.0] * 59) == 0.0
    assert growth([1.0] * 58) is None


def test_the_worst_replica_counts() -> None:
    """One that grows is not hidden by another that shrinks."""
    swaps = [a_swap(n, rss={"replica-1": 4e8 - n * 1e6, "replica-2": 4e8 + n * 1e6}) for n in range(60)]
    assert (grown([a_piece(swaps)], "rss") or 0.0) > 0.04
    assert grown([a_piece(swaps)], "pss") == 0.0
    assert grown([a_piece(swaps[:5])], "rss") is None


def test_a_histogram_counts_every_value_once() -> None:
    """A value on an edge belongs to the bucket that ends there."""
    assert histogram([1.0, 2.0, 2.1, 9.0], (2.0, 5.0)) == [2, 1, 1]
    assert sum(histogram([float(value) for value in range(1000)])) == 1000


def test_a_good_run_keeps_every_promise() -> None:
    """All can be told, and all are kept."""
    found = promises(summarize([a_piece()], resamples=9))
    assert [each.met for each in found] == [True] * len(found)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"answered": 2499}, "failed"),
        ({"wrong": 1}, "no registered version"),
        ({"regressions": 1}, "per client"),
        ({"regressions_all": 1}, "over all clients"),
    ],
)
def test_one_bad_answer_breaks_a_promise(changes: dict[str, Any], word: str) -> None:
    """Once is enough."""
    (promise,) = broken(a_piece(**changes))
    assert word in promise


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"during": [10.0] * 59 + [26.0]}, "p99"),
        ({"holds_ms": [12.0, 50.1]}, "hold"),
        ({"skew_ms": 50.1}, "skew"),
        ({"took_ms": 100.1}, "rollback"),
        ({"first_ms": 600.1}, "hint"),
    ],
)
def test_slow_swaps_break_a_promise(changes: dict[str, Any], word: str) -> None:
    """Each limit is its own."""
    (promise,) = broken(a_piece([a_swap(number, **changes) for number in range(60)]))
    assert word in promise


def test_a_planted_leak_breaks_the_memorys_promise() -> None:
    """A third of a megabyte a swap of 400 is seen after sixty."""
    swaps = [a_swap(number, rss={"replica-1": 4e8 + number * 3e5}) for number in range(60)]
    assert "RSS" in broken(a_piece(swaps))[0]


def test_a_run_that_cannot_tell_does_not_claim() -> None:
    """Too few requests, or a generator behind its clock, leave the p99 open; no rollback leaves its time open."""
    few = [a_swap(number) for number in range(LEAST_SAMPLES // 60)]
    met = {each.promise[:3]: each.met for each in promises(summarize([a_piece(few)], resamples=9))}
    assert (met["p99"], met["gro"]) == (None, None)
    late = promises(summarize([a_piece(late_p99_ms=500.0)], resamples=9))
    assert {each.promise[:3]: each.met for each in late}["p99"] is None
    nothing = promises(summarize([a_piece([], sent=0, answered=0)], resamples=9))
    assert [each.met for each in nothing] == [None] * len(nothing)


def test_pieces_pool() -> None:
    """Counts add up and latencies are pooled; the report names what went wrong."""
    bad = a_piece(answered=2499, failures={"503 unavailable": 1}, aborted_holds=2)
    figures = summarize([a_piece(), bad], resamples=9)
    assert (figures["swaps"], figures["failed"], figures["sent"]) == (120, 1, 5000)
    assert figures["requests"] == [7200, 7200]
    text = swap_table.markdown({"machine": MACHINE, "what": "All.", "figures": figures, "pieces": [a_piece(), bad]})
    for line in ("requests that failed | 1 of 5000", "failed: 503 unavailable x 1", "2 holds ended without a flip"):
        assert line in text
    rows = [line for line in text.splitlines() if line.startswith("| holds")]
    assert rows[0].count("|") == len(EDGES_MS) + 3


def test_what_was_measured_before_first_answers_were_is_still_read() -> None:
    """Their promise is left open, and rollbacks never count for it; each kind has its own row."""
    old = [{name: value for name, value in a_swap(n).items() if name != "first_ms"} for n in range(60)]
    found = summarize([a_piece(old)], resamples=9)
    assert (found["beyond_ms"], found["hint_beyond_ms"]) == (None, None)
    swaps = [a_swap(9, first_ms=9e9), a_swap(0), a_swap(1, action="hint", first_ms=400.0)]
    found = summarize([a_piece(swaps)], resamples=9)
    assert (found["promotion_beyond_ms"][2], found["hint_beyond_ms"][2]) == (200.0, 300.0)
    assert found["beyond_ms"][2] == 300.0
