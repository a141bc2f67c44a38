"""The arithmetic of ``swap.py``: from swaps with their windows to the numbers that the promises are about."""

from __future__ import annotations

import bisect
import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from report import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_RATIO = 1.25
MOST_HOLD_MS = 50.0
MOST_SKEW_MS = 50.0
MOST_ROLLBACK_MS = 100.0
MOST_HINT_MS = 500.0
"""From a moved alias that is told of to the first answer by its version, beyond loading and warming."""
MOST_GROWTH = 0.02
LEAST_SAMPLES = 459
"""Requests below which no 99th percentile can be claimed with 99 % confidence (MLPerf's early stopping, none over)."""
MOST_LATE_MS = 10.0
LEAST_SERIES = 30
"""Memory samples below which no trend is claimed: a replica takes some 40 swaps until its allocator has settled."""
RESAMPLES = 1000
EDGES_MS = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 500.0)

Window = tuple[float, float]
"""Begin and end, seconds of the run; the end is no part of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise. met: None where the run cannot tell."""

    promise: str
    measured: str
    wanted: str
    met: bool | None


def within(moments: Sequence[tuple[float, float]], window: Window) -> list[float]:
    """Return the latencies of ``moments`` = sorted (due, latency) that were due in ``window``."""
    begin, end = (bisect.bisect_left(moments, (edge, -math.inf)) for edge in window)
    return [latency for _, latency in moments[begin:end]]


def longest_gap(done: Sequence[float], window: Window) -> float | None:
    """Return the longest time between two successive answers in which any of ``window`` lies; None without two.

    done: rising moments of answers 200.
    """
    first = max(bisect.bisect_left(done, window[0]) - 1, 0)
    last = min(bisect.bisect_right(done, window[1]), len(done) - 1)
    return max((after - before for before, after in pairwise(done[first : last + 1])), default=None)


def first_answer(answers: Sequence[tuple[float, float]], asked: float, flipped: float) -> float | None:
    """Return the seconds from ``asked`` to the first answer by a new version, but for those in which nobody asked.

    answers: (due, done) of those that it gave. flipped: when its first replica began to serve, or a little later.
    None where it gave none.
    """
    first = min(answers, key=lambda answer: answer[1], default=None)
    if first is None:
        return None
    due, done = first
    return done - asked - max(0.0, due - flipped)


def pooled(swaps: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return the sorted latencies that ``name`` holds in all ``swaps``."""
    return sorted(latency for swap in swaps for latency in swap[name])


class Intervals(NamedTuple):
    """95 % intervals: of the pooled p99 (milliseconds) in swap windows, in control windows, and of their ratio."""

    during: Window
    control: Window
    ratio: Window


def bootstrap(swaps: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES) -> Intervals | None:
    """Return the intervals of pooled p99s: swaps drawn with replacement, each with its control window.

    Percentile bootstrap over clusters: requests of one window share their stalls, so windows are what is drawn.
    """
    there = [swap for swap in swaps if swap["during"] and swap["control"]]
    if not there:
        return None
    sides = [_Pool([swap[name] for swap in there]) for name in ("during", "control")]
    chance = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        times = np.bincount(chance.integers(0, len(there), len(there)), minlength=len(there))
        during, control = (side.p99(times) for side in sides)
        drawn.append((during, control, during / control))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return Intervals(*((float(one), float(other)) for one, other in zip(low, high, strict=True)))


def quartiles(swaps: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float] | None:
    """Return the quartiles of the p99s of single windows; None for fewer than two windows with answers."""
    each = [percentile(sorted(swap[name]), 0.99) for swap in swaps if swap[name]]
    there = [value for value in each if value is not None]
    if len(there) < 2:  # noqa: PLR2004 - one value has no spread
        return None
    low, middle, high = statistics.quantiles(there, n=4, method="inclusive")
    return low, middle, high


def growth(series: Sequence[float]) -> float | None:
    """Return by what part a series rises over its second half: Theil-Sen's slope times its length over its level.

    The median of all pairwise slopes (Sen 1968) ignores single steps of an allocator and follows a leak at every swap.
    None for fewer than LEAST_SERIES values in the half.
    """
    half = list(series[len(series) // 2 :])
    if len(half) < LEAST_SERIES:
        return None
    slopes = [(half[j] - half[i]) / (j - i) for i in range(len(half)) for j in range(i + 1, len(half))]
    return statistics.median(slopes) * (len(half) - 1) / statistics.median(half)


def grown(pieces: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    """Return the growth of the replica of which ``kind`` (``rss`` or ``pss``) grew most; None where none can be told.

    Each piece is a service of its own, so trends are within a piece.
    """
    trends: list[float] = []
    for piece in pieces:
        series: dict[str, list[float]] = {}
        for swap in piece["swaps"]:
            for replica, size in swap[kind].items():
                series.setdefault(replica, []).append(size)
        trends += [rise for each in series.values() if (rise := growth(each)) is not None]
    return max(trends, default=None)


def histogram(values: Sequence[float], edges: Sequence[float] = EDGES_MS) -> list[int]:
    """Return how many values lie up to each edge and above the one before; last those above all edges."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect.bisect_left(edges, value)] += 1
    return counts


def summarize(pieces: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return every figure over ``pieces``, runs of one and the same measurement."""
    swaps = [swap for piece in pieces for swap in piece["swaps"]]
    during, control = pooled(swaps, "during"), pooled(swaps, "control")
    asked = sorted([*during, *pooled(swaps, "before")])
    p99s = [percentile(each, 0.99) for each in (during, control, asked)]
    holds = sorted(hold for swap in swaps for hold in swap["holds_ms"])
    skews = sorted(swap["skew_ms"] for swap in swaps)
    promotions = sorted(swap["took_ms"] for swap in swaps if swap["action"] == "promote")
    rollbacks = sorted(swap["took_ms"] for swap in swaps if swap["action"] == "rollback")
    hints = {kind: _beyond(swaps, kind) for kind in ("promote", "hint")}
    intervals = bootstrap(swaps, resamples=resamples)
    counts = {name: sum(piece[name] for piece in pieces) for name in ("sent", "answered", "wrong", "aborted_holds")}
    counts |= {name: sum(piece[name] for piece in pieces) for name in ("regressions", "regressions_all")}
    return counts | {
        "swaps": len(swaps),
        "rollbacks": len(rollbacks),
        "failed": counts["sent"] - counts["answered"],
        "late_p99_ms": max((piece["late_p99_ms"] for piece in pieces), default=0.0),
        "window_s": statistics.mean(swap["window"][1] - swap["window"][0] for swap in swaps) if swaps else None,
        "requests": [len(during), len(control)],
        "p50_ms": [percentile(during, 0.5), percentile(control, 0.5)],
        "p99_ms": p99s[:2],
        "p999_ms": [percentile(during, 0.999), percentile(control, 0.999)],
        "ratio": p99s[0] / p99s[1] if p99s[0] and p99s[1] else None,
        "ratio_asked": p99s[2] / p99s[1] if p99s[2] and p99s[1] else None,
        "ratio_95": None if intervals is None else intervals.ratio,
        "p99_95_ms": [None, None] if intervals is None else [intervals.during, intervals.control],
        "quartiles_ms": [quartiles(swaps, "during"), quartiles(swaps, "control")],
        "gap_ms": [max((swap[name] or 0.0 for swap in swaps), default=None) for name in ("gap_ms", "control_gap_ms")],
        "holds_ms": _spread(holds),
        "holds_histogram": histogram(holds),
        "skew_ms": _spread(skews),
        "skew_histogram": histogram(skews),
        "promotion_ms": _spread(promotions),
        "rollback_ms": _spread(rollbacks),
        "promotion_beyond_ms": _spread(hints["promote"]),
        "hint_beyond_ms": _spread(hints["hint"]),
        "beyond_ms": _spread(sorted([*hints["promote"], *hints["hint"]])),
        "rss_growth": grown(pieces, "rss"),
        "pss_growth": grown(pieces, "pss"),
    }


def promises(found: Mapping[str, Any]) -> list[Verdict]:
    """Return what was promised of swaps, and whether ``found`` keeps it."""
    verdicts = [
        Verdict(title, f"{found[name]} of {found['sent']}", "0", found[name] == 0 if found["sent"] else None)
        for title, name in (
            ("requests that failed", "failed"),
            ("answers that no registered version gives", "wrong"),
            ("older generation after a newer, per client", "regressions"),
            ("older generation after a newer, over all clients", "regressions_all"),
        )
    ]
    enough = min(found["requests"]) >= LEAST_SAMPLES and sound(found)
    interval = "" if found["ratio_95"] is None else " (95 %: {:.2f} to {:.2f})".format(*found["ratio_95"])
    ratio = found["ratio"]
    verdicts.append(
        Verdict(
            "p99 in swap windows ÷ in control windows",
            "-" if ratio is None else f"{ratio:.2f}{interval}",
            f"≤ {MOST_RATIO}",
            ratio <= MOST_RATIO if ratio is not None and enough else None,
        )
    )
    for title, name, most in (
        ("longest hold", "holds_ms", MOST_HOLD_MS),
        ("longest skew of flips", "skew_ms", MOST_SKEW_MS),
        ("longest rollback, request to last flip", "rollback_ms", MOST_ROLLBACK_MS),
        ("longest from a hint to the first answer, beyond load and warm-up", "beyond_ms", MOST_HINT_MS),
    ):
        spread = found[name]
        measured = "-" if spread is None else f"{spread[2]:.1f} ms"
        verdicts.append(Verdict(title, measured, f"≤ {most:.0f} ms", None if spread is None else spread[2] <= most))
    rise = found["rss_growth"]
    verdicts.append(
        Verdict(
            "growth of a replica's RSS, second half of the swaps",
            "-" if rise is None else f"{100 * rise:.2f} %",
            f"< {100 * MOST_GROWTH:.0f} %",
            None if rise is None else rise < MOST_GROWTH,
        )
    )
    return verdicts


def sound(found: Mapping[str, Any]) -> bool:
    """Return whether the generator kept to its clock: else latencies say nothing of the service."""
    return bool(found["late_p99_ms"] <= MOST_LATE_MS)


def _beyond(swaps: Sequence[Mapping[str, Any]], action: str) -> list[float]:
    """Return, rising, the milliseconds to first answers beyond the longest preparation, of swaps by ``action``."""
    told = [swap for swap in swaps if swap["action"] == action and swap.get("first_ms") is not None]
    return sorted(swap["first_ms"] - swap["prepared_ms"] for swap in told)


def _spread(ordered: Sequence[float]) -> tuple[float, float, float] | None:
    """Return median, p99 and maximum of rising values."""
    middle, high = percentile(ordered, 0.5), percentile(ordered, 0.99)
    return None if middle is None or high is None else (middle, high, ordered[-1])


class _Pool:
    """Values of several windows, sorted once for many resamples."""

    def __init__(self, windows: Sequence[Sequence[float]]) -> None:
        values = np.concatenate([np.asarray(window) for window in windows])
        order = np.argsort(values)
        self._values = values[order]
        self._windows = np.repeat(np.arange(len(windows)), [len(window) for window in windows])[order]

    def p99(self, times: Any) -> float:
        """Return the nearest-rank p99 where window i counts ``times[i]`` times."""
        counts = np.cumsum(times[self._windows])
        return float(self._values[np.searchsorted(counts, math.ceil(0.99 * counts[-1]))])
