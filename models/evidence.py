"""What images in production say of a version: counts that replicas collect and whoever judges adds up.

Frozen, picklable and mergeable in any order, so that a lost or repeated report does no harm. A replica's evidence only
grows while what it is about lasts; the latest one of every replica, merged, is that of the fleet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

FASTEST_S = 1e-4
BINS_PER_DOUBLING = 8
LATENCY_BINS = 20 * BINS_PER_DOUBLING + 2
"""The first holds what took FASTEST_S or less, the last what took longer than 2**20 times that: 105 seconds."""
LATENCY_EDGES_S: tuple[float, ...] = tuple(
    FASTEST_S * math.exp2(index / BINS_PER_DOUBLING) for index in range(LATENCY_BINS - 1)
)
"""Upper edges of all latency bins but the last (seconds, inclusive), each 9 % above the one before."""
SCORE_BINS = 20
"""Equal bins of scores from 0 to 1."""
MILLION = 1_000_000

Counts = tuple[int, ...]
"""A histogram: how many values fell into each bin."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the images that one version was run on.

    images: answered, >= 0. errors: failed by the version's own fault, or overran their time on it, not in ``images``.
    looked: answers that no class filter narrowed, ``empties`` of them without a box.
    latency: LATENCY_BINS counts of the seconds that network and postprocessing took; waiting is a matter of load.
    scores: SCORE_BINS counts of the scores of boxes, of those answers that were asked for all boxes that the version
    shows by default.
    """

    images: int = 0
    errors: int = 0
    looked: int = 0
    empties: int = 0
    latency: Counts = (0,) * LATENCY_BINS
    scores: Counts = (0,) * SCORE_BINS

    @property
    def tried(self) -> int:
        """Return how many images the version was run on."""
        return self.images + self.errors

    @property
    def error_rate(self) -> float:
        """Return the share of images that failed, 0 to 1; 0 without any."""
        return share(self.errors, self.tried)

    @property
    def empty_rate(self) -> float:
        """Return the share of unfiltered answers without a box, 0 to 1; 0 without any."""
        return share(self.empties, self.looked)

    def latency_s(self, quantile: float) -> float:
        """Return the upper edge (seconds) of the bin that holds that quantile (0 to 1), inf above the last edge.

        At most 9 % above the true one, for whatever FASTEST_S and more took; 0 without any image.
        """
        total = sum(self.latency)
        if not total:
            return 0.0
        rank = max(1, math.ceil(quantile * total))
        seen = 0
        for index, count in enumerate(self.latency[: len(LATENCY_EDGES_S)]):
            seen += count
            if seen >= rank:
                return LATENCY_EDGES_S[index]
        return math.inf

    def slower_than(self, seconds: float) -> int:
        """Return how many images certainly took longer than ``seconds``."""
        return sum(self.latency[latency_bin(seconds) + 1 :])


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two versions saw in the same images, asked with the same options.

    images: compared, >= 0. serving_boxes, candidate_boxes: boxes that each saw. overlapping: pairs of boxes, one of
    each, with an IoU of 0.5 or more; matched: those of them of one class. score_shift: sum over the matched pairs of
    the candidate's score minus the serving version's, in millionths, so that sums do not depend on their order.
    serving_empties, candidate_empties: answers without a box. failed: images on which the candidate failed.
    dropped: images that were chosen but not compared, because the replica had no time to spare.
    """

    images: int = 0
    serving_boxes: int = 0
    candidate_boxes: int = 0
    overlapping: int = 0
    matched: int = 0
    score_shift: int = 0
    serving_empties: int = 0
    candidate_empties: int = 0
    failed: int = 0
    dropped: int = 0

    @property
    def found_again(self) -> float:
        """Return the share of the serving version's boxes that the candidate matched, 0 to 1; 1 without any."""
        return share(self.matched, self.serving_boxes) if self.serving_boxes else 1.0

    @property
    def class_agreement(self) -> float:
        """Return the share of overlapping boxes of one class, 0 to 1; 1 without any."""
        return share(self.matched, self.overlapping) if self.overlapping else 1.0

    @property
    def mean_score_shift(self) -> float:
        """Return the candidate's mean gain of score on matched boxes, -1 to 1; 0 without any."""
        return share(self.score_shift, self.matched) / MILLION


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of a serving version and, while one is tried, of a candidate.

    serving: live images only. candidate: live images and those of ``pairs``.
    """

    serving: Tally = Tally()
    candidate: Tally = Tally()
    pairs: Pairs = Pairs()

    @property
    def canaried(self) -> int:
        """Return how many live images the candidate was run on, its failures included."""
        return max(0, self.candidate.tried - self.pairs.images - self.pairs.failed)


def merge(one: Evidence, other: Evidence) -> Evidence:
    """Return what both know together. Associative and commutative; ``Evidence()`` adds nothing."""
    return Evidence(
        merge_tallies(one.serving, other.serving),
        merge_tallies(one.candidate, other.candidate),
        merge_pairs(one.pairs, other.pairs),
    )


def merge_tallies(one: Tally, other: Tally) -> Tally:
    """Return the sum of two tallies."""
    return Tally(
        one.images + other.images,
        one.errors + other.errors,
        one.looked + other.looked,
        one.empties + other.empties,
        _add(one.latency, other.latency),
        _add(one.scores, other.scores),
    )


def latency_bin(seconds: float) -> int:
    """Return the bin of a latency."""
    return bisect_left(LATENCY_EDGES_S, seconds)


def share(part: int, whole: int) -> float:
    """Return ``part / whole``, 0 where there is no whole."""
    return part / whole if whole else 0.0


def merge_pairs(one: Pairs, other: Pairs) -> Pairs:
    """Return the sum of two comparisons."""
    return Pairs(
        one.images + other.images,
        one.serving_boxes + other.serving_boxes,
        one.candidate_boxes + other.candidate_boxes,
        one.overlapping + other.overlapping,
        one.matched + other.matched,
        one.score_shift + other.score_shift,
        one.serving_empties + other.serving_empties,
        one.candidate_empties + other.candidate_empties,
        one.failed + other.failed,
        one.dropped + other.dropped,
    )


def _add(one: Counts, other: Counts) -> Counts:
    return tuple(a + b for a, b in zip(one, other, strict=True))
