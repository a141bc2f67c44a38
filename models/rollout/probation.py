"""Probation: a version that has just begun to serve is held against the hour before it.

A breach flips back to the version before. Nobody watched the two side by side, so the limits are wide: what comes in
front of the cameras changes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.rollout.evidence import emptier, more_errors, score_fall, slower
from models.rollout.order import PLAIN

if TYPE_CHECKING:
    from models.rollout.evidence import Evidence, Tally
    from models.rollout.order import Order


@dataclass(frozen=True, slots=True)
class ProbationLimits:
    """How long a version is on probation, and what ends it early.

    window_s: seconds after the commit, 0 for no probation. least_images: of both versions before latencies and empty
    answers are compared, >= 1; errors always are. least_boxes: of both before their scores are, >= 1. error_rise,
    empty_rise: most that the share of failed images and of empty answers may rise, 0 to 1. latency_factor: most that
    the 99th percentile of latency may grow, >= 1. score_fall: most that scores may fall, 0 to 1; they may rise.
    """

    window_s: float = 300.0
    least_images: int = 50
    least_boxes: int = 500
    error_rise: float = 0.01
    empty_rise: float = 0.2
    latency_factor: float = 3.0
    score_fall: float = 0.2


def judge(
    before: Evidence, after: Evidence, elapsed_s: float, limits: ProbationLimits, order: Order | None = PLAIN
) -> str | None:
    """Return why the version must go, with the numbers, or None while nothing speaks against it.

    Args:
        before: the version before, over its last hour, merged over the replicas; what is in ``serving`` counts.
        after: the version on probation, since its commit, likewise.
        elapsed_s: seconds since the commit.
        limits: thresholds.
        order: of its promotion. What it waived is not held against the version afterwards: latencies with ``force``,
            empty answers and scores with ``allow_contract_change``. None where nobody knows it: neither counts then.
            Errors always do.
    """
    if elapsed_s > limits.window_s:
        return None
    old, new = before.serving, after.serving
    errors = more_errors(old, new, limits.error_rise)
    if errors is not None or order is None:
        return errors
    late = None if order.force else _later(old, new, limits)
    return late if late is not None or order.allow_contract_change else _compare(old, new, limits)


def passed(elapsed_s: float, limits: ProbationLimits) -> bool:
    """Return whether the probation is over, ``elapsed_s`` seconds after the commit."""
    return elapsed_s > limits.window_s


def _later(old: Tally, new: Tally, limits: ProbationLimits) -> str | None:
    enough = min(old.images, new.images) >= limits.least_images
    return slower(old, new, limits.latency_factor) if enough else None


def _compare(old: Tally, new: Tally, limits: ProbationLimits) -> str | None:
    if min(old.looked, new.looked) >= limits.least_images:
        empties = emptier((old.empties, old.looked), (new.empties, new.looked), limits.empty_rise)
        if empties is not None:
            return empties
    if min(sum(old.scores), sum(new.scores)) < limits.least_boxes:
        return None
    fall = score_fall(old.scores, new.scores)
    if fall <= limits.score_fall:
        return None
    return (
        f"the scores of {sum(new.scores)} boxes lie {fall:.3f} below those of the version it replaces on average; at "
        f"most {limits.score_fall:.3f} is allowed"
    )
