"""Trials before a commit: shadow, then canary steps, each judged by what the replicas saw meanwhile.

shadow: the candidate runs unseen on a share of the live images, and both answers are compared.
canary: it also answers a share of the clients. Its clients look at other things than the rest, so what it sees is still
judged on images that both versions saw; whether it fails or is slow, on all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from models.rollout.evidence import emptier, more_errors, slower
from models.rollout.order import PLAIN

if TYPE_CHECKING:
    from models.rollout.evidence import Evidence, Pairs
    from models.rollout.order import Order

Mode = Literal["shadow", "canary"]


@dataclass(frozen=True, slots=True)
class TrialStep:
    """One step. number: from 1. fraction: share of live images (shadow) or of clients (canary), 0 to 1.

    length_s: seconds, > 0. shadow: share of the images answered by the serving version that the candidate runs on too.
    """

    number: int
    mode: Mode
    fraction: float
    length_s: float
    shadow: float

    @property
    def canary(self) -> float:
        """Return the share of clients that the candidate answers."""
        return self.fraction if self.mode == "canary" else 0.0


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """When a candidate is good enough.

    least_images: images of the candidate (in a canary step: of live clients) that a step needs to end well, >= 1; also
    what comparisons need before they count. grace_s: seconds beyond its length after which a shadow that still lacks
    them is given up, >= 0. patience: the same of a canary step, in times its length, >= 1. error_rise, empty_rise: most
    that the share of failed images and of empty answers may rise, 0 to 1. latency_factor: most that the 99th percentile
    of latency may grow, >= 1. found_again: least share of the serving version's boxes, class_agreement: least share of
    overlapping boxes of one class, 0 to 1. score_shift: most that the mean score of matched boxes may move, 0 to 1.
    """

    least_images: int = 50
    grace_s: float = 30.0
    patience: float = 3.0
    error_rise: float = 0.01
    empty_rise: float = 0.1
    latency_factor: float = 2.0
    found_again: float = 0.5
    class_agreement: float = 0.8
    score_shift: float = 0.2


@dataclass(frozen=True, slots=True)
class Advance:
    """The step ended well: go on with the next one, or commit. waived: what would have spoken against it, or ""."""

    waived: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on collecting."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The candidate may not serve, and why, with the numbers. permanent: False where the step could not tell."""

    reason: str
    permanent: bool = True


Judgement = Advance | Wait | Abort


def steps(order: Order) -> tuple[TrialStep, ...]:
    """Return the trial steps that ``order`` asks for, in order; none by default."""
    modes: list[tuple[Mode, float, float]] = []
    if order.shadow_s > 0.0:
        modes.append(("shadow", order.shadow_fraction, order.shadow_s))
    modes += [("canary", fraction, order.step_s) for fraction in order.canary]
    return tuple(
        TrialStep(number, mode, fraction, length_s, order.shadow_fraction)
        for number, (mode, fraction, length_s) in enumerate(modes, start=1)
    )


def judge(
    step: TrialStep, evidence: Evidence, elapsed_s: float, limits: TrialLimits, order: Order = PLAIN
) -> Judgement:
    """Return what to do with the candidate.

    A shadow that saw too little is tried again later: that speaks of the fleet's load, not of the version. A canary
    step is not, for each one puts its clients back to the old version when it ends.

    Args:
        step: under way.
        evidence: of this step alone, merged over the replicas.
        elapsed_s: seconds since all replicas were told to begin it.
        limits: thresholds.
        order: of the promotion. What it waived does not count here either: latencies with ``force``, other classes of
            the same boxes with ``allow_contract_change``. Errors, empty answers, lost boxes and scores always do.
    """
    breach, waived = _breaches(evidence, limits, order)
    if breach is not None:
        return Abort(breach)
    if elapsed_s < step.length_s:
        return Wait()
    shadow = step.mode == "shadow"
    seen = evidence.pairs.images if shadow else evidence.canaried
    if seen >= limits.least_images:
        return Advance(waived)
    if elapsed_s < (step.length_s + limits.grace_s if shadow else limits.patience * step.length_s):
        return Wait()
    return Abort(_too_little(step, evidence, seen, elapsed_s, limits), permanent=not shadow)


def _breaches(evidence: Evidence, limits: TrialLimits, order: Order) -> tuple[str | None, str]:
    """Return what ends the trial, None for nothing, and what would if the order had not waived it."""
    before, after, pairs = evidence.serving, evidence.candidate, evidence.pairs
    # Where nothing of the serving version is known, any errors are the candidate's own.
    errors = more_errors(before, after, limits.error_rise)
    if errors is not None:
        return errors, ""
    enough = min(before.images, after.images) >= limits.least_images
    late = slower(before, after, limits.latency_factor) if enough else None
    if late is not None and not order.force:
        return late, ""
    waived = [] if late is None else [f"waived ({order.force}): {late}"]
    if pairs.images < limits.least_images:
        return None, "; ".join(waived)
    disagreement = _disagreement(pairs, limits)
    if disagreement is not None and order.allow_contract_change:
        allowed, disagreement = disagreement, _disagreement(pairs, limits, any_class=True)
        waived += [f"waived (a breaking change is allowed): {allowed}"] if disagreement is None else []
    return disagreement, "; ".join(waived)


def _disagreement(pairs: Pairs, limits: TrialLimits, *, any_class: bool = False) -> str | None:
    """Return how far the two versions differ where that is too far; ``any_class``: boxes may change their class."""
    empties = emptier((pairs.serving_empties, pairs.images), (pairs.candidate_empties, pairs.images), limits.empty_rise)
    if empties is not None:
        return empties
    # Each needs as many boxes as images are needed: a share of three boxes says nothing.
    found = pairs.overlapping if any_class else pairs.matched
    if pairs.serving_boxes >= limits.least_images and found < limits.found_again * pairs.serving_boxes:
        return (
            f"it finds {found} of the {pairs.serving_boxes} boxes of the serving version again "
            f"({found / pairs.serving_boxes:.1%}, over {pairs.images} images); at least {limits.found_again:.1%} are "
            "demanded"
        )
    if any_class:
        return _shifted(pairs, limits)
    if pairs.overlapping >= limits.least_images and pairs.class_agreement < limits.class_agreement:
        return (
            f"it gives {pairs.matched} of {pairs.overlapping} boxes the class that the serving version gives them "
            f"({pairs.class_agreement:.1%}); at least {limits.class_agreement:.1%} are demanded"
        )
    return _shifted(pairs, limits)


def _shifted(pairs: Pairs, limits: TrialLimits) -> str | None:
    if pairs.matched >= limits.least_images and abs(pairs.mean_score_shift) > limits.score_shift:
        return (
            f"its scores differ by {pairs.mean_score_shift:+.3f} on average over {pairs.matched} boxes; at most "
            f"{limits.score_shift:.3f} either way is allowed"
        )
    return None


def _too_little(step: TrialStep, evidence: Evidence, seen: int, elapsed_s: float, limits: TrialLimits) -> str:
    if step.mode == "canary":
        what = f"the canary answered {seen} of at least {limits.least_images} images in {elapsed_s:.0f} s"
        return f"{what}: only clients that send X-Client-Id can be followed; send it, or promote with a shadow alone"
    what = f"the shadow compared {seen} of at least {limits.least_images} images in {elapsed_s:.0f} s"
    if evidence.pairs.dropped:
        why = f"{evidence.pairs.dropped} more were dropped because the replicas had no time to spare"
        return f"{what}; {why}: promote with a longer shadow or with none, or add replicas"
    return f"{what}: too few came; promote with a longer shadow, a larger share of images, or no shadow"
