"""How evidence is read: whether one version fails, sees nothing or is slow more often than another, beyond chance.

Shares are compared by the lower end of Wilson's score interval (E. B. Wilson, "Probable Inference, the Law of
Succession, and Statistical Inference", JASA 22, 1927), so that a few images prove much where all of them go wrong, and
little where one does. Evidence is looked at again and again while it grows, hence the wide interval.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from models.evidence import Evidence, Pairs, Tally, merge

if TYPE_CHECKING:
    from models.evidence import Counts

__all__ = [
    "Evidence",
    "Pairs",
    "Tally",
    "emptier",
    "lower_bound",
    "measured",
    "merge",
    "more_errors",
    "score_fall",
    "slower",
]

SURE: Final = 3.0
"""Half the width of the interval in standard deviations: about 1 in 1000 looks would be wrong by chance."""
LEAST_ERRORS: Final = 3
"""Failed images that could still be an accident."""
TAIL: Final = 0.05
"""Share of images that may exceed a multiple of the former 99th percentile, where 0.01 would do if images were slow
independently of each other. They are not: whatever holds the machine up for a moment slows all that run.
"""
P99: Final = 0.99
SLACK_S: Final = 0.02
"""Seconds beyond the former 99th percentile in which no image counts as slow: a few turns of the machine's scheduler,
which a neighbour takes from any version, and which is a large multiple of a small network's time.
"""


def lower_bound(hits: int, trials: int) -> float:
    """Return the share, 0 to 1, that ``hits`` of ``trials`` surely exceed; 0 without trials."""
    if trials <= 0:
        return 0.0
    seen, squared = hits / trials, SURE**2
    centre = seen + squared / (2 * trials)
    spread = SURE * math.sqrt(seen * (1 - seen) / trials + squared / (4 * trials**2))
    return min(1.0, max(0.0, (centre - spread) / (1 + squared / trials)))


def more_errors(before: Tally, after: Tally, rise: float) -> str | None:
    """Return how much more often than ``before`` images of ``after`` fail where that is surely more than ``rise``."""
    limit = before.error_rate + rise
    if after.errors <= LEAST_ERRORS or lower_bound(after.errors, after.tried) <= limit:
        return None
    return (
        f"{after.errors} of {after.tried} images failed ({after.error_rate:.1%}), "
        f"{before.error_rate:.1%} on the version it replaces; at most {limit:.1%} are allowed"
    )


def emptier(before: tuple[int, int], after: tuple[int, int], rise: float) -> str | None:
    """Return how much more often answers are empty where that is surely more than ``rise``.

    before, after: (answers without a box, answers).
    """
    reference = before[0] / max(before[1], 1)
    if lower_bound(*after) <= reference + rise:
        return None
    return (
        f"{after[0]} of {after[1]} answers are empty ({after[0] / after[1]:.1%}), {reference:.1%} of those of the "
        f"version it replaces; at most {reference + rise:.1%} are allowed"
    )


def slower(before: Tally, after: Tally, factor: float) -> str | None:
    """Return how much slower ``after`` is where too many of its images exceed ``factor`` times the former p99.

    Too many: surely more than TAIL of them took longer than ``factor`` times the 99th percentile of ``before``, and
    longer than that percentile by SLACK_S.
    """
    usual = before.latency_s(P99)
    limit = max(factor * usual, usual + SLACK_S)
    slow = after.slower_than(limit)
    if lower_bound(slow, after.images) <= TAIL:
        return None
    return (
        f"{slow} of {after.images} images took longer than {1e3 * limit:.1f} ms; the 99th percentile is "
        f"{1e3 * after.latency_s(P99):.1f} ms, {1e3 * usual:.1f} ms on the version it replaces; "
        f"{factor:g} times that, or {1e3 * SLACK_S:g} ms more, is allowed"
    )


def score_fall(before: Counts, after: Counts) -> float:
    """Return how far scores fell from one histogram to the other, 0 to 1; 0 where either is empty.

    The part of the Wasserstein distance of order 1 by which mass moved downwards: the sum of max(0, F - G) over the
    bins, times their width, where F and G are the cumulative shares of ``after`` and ``before`` (S. S. Vallender,
    "Calculation of the Wasserstein Distance Between Probability Distributions on the Line", Theory of Probability and
    its Applications 18(4), 1974). A distance of shapes would find any two versions strange that look at one scene all
    day, whose few scores never fall into the same bins; rising scores are no harm.
    """
    total, other_total = sum(before), sum(after)
    if not total or not other_total:
        return 0.0
    fall = below = above = 0.0
    for a, b in zip(before, after, strict=True):
        below += b / other_total
        above += a / total
        fall += max(0.0, below - above)
    return fall / len(before)


def measured(evidence: Evidence) -> dict[str, float]:
    """Return the figures of ``evidence`` for a record: counts, shares (0 to 1) and milliseconds, all finite."""
    figures: dict[str, float] = {}
    for name, tally in (("serving", evidence.serving), ("candidate", evidence.candidate)):
        figures[f"{name}_images"] = tally.images
        figures[f"{name}_errors"] = tally.errors
        figures[f"{name}_empty_rate"] = tally.empty_rate
        for percent in (50, 99):
            milliseconds = 1e3 * tally.latency_s(percent / 100)
            figures[f"{name}_p{percent}_ms"] = milliseconds if math.isfinite(milliseconds) else 1e6
    pairs = evidence.pairs
    figures |= {
        "compared": pairs.images,
        "dropped": pairs.dropped,
        "found_again": pairs.found_again,
        "class_agreement": pairs.class_agreement,
        "mean_score_shift": pairs.mean_score_shift,
    }
    return {name: round(float(value), 6) for name, value in figures.items()}
