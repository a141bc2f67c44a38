"""Trial steps follow from the order, and their judgement from what was seen."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evidence import LATENCY_BINS, Evidence, Pairs, Tally, latency_bin, merge
from models.rollout.order import Order
from models.rollout.trial import Abort, Advance, TrialLimits, TrialStep, Wait, judge, steps

SHADOW = TrialStep(1, "shadow", 0.1, 60.0, 0.1)
CANARY = TrialStep(2, "canary", 0.05, 60.0, 0.1)
LIMITS = TrialLimits()


def fast(images: int, errors: int = 0, seconds: float = 0.02) -> Tally:
    """Return a tally of images that took as long."""
    counts = [0] * LATENCY_BINS
    counts[latency_bin(seconds)] = images
    return Tally(images, errors, latency=tuple(counts))


ALIKE = Pairs(images=100, serving_boxes=200, candidate_boxes=200, overlapping=190, matched=188)
SHADOWED = Evidence(fast(1000), fast(100), ALIKE)
CANARIED = Evidence(fast(1000), fast(200), ALIKE)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order(), ()),
        (Order(shadow_s=60.0), (SHADOW,)),
        (Order(shadow_s=60.0, canary=(0.05,), step_s=60.0), (SHADOW, CANARY)),
        (
            Order(canary=(0.05, 0.25), step_s=60.0, shadow_fraction=0.5),
            (TrialStep(1, "canary", 0.05, 60.0, 0.5), TrialStep(2, "canary", 0.25, 60.0, 0.5)),
        ),
    ],
)
def test_steps_follow_the_order(order: Order, expected: tuple[TrialStep, ...]) -> None:
    """A shadow comes first, canary shares rise after it, nothing is tried unasked."""
    assert steps(order) == expected


def test_a_shadow_answers_nobody() -> None:
    """Only a canary step has clients of its own."""
    assert (SHADOW.canary, CANARY.canary) == (0.0, 0.05)


def pairs(**changes: int) -> Evidence:
    """Return a shadow's good evidence with other pairs."""
    return replace(SHADOWED, pairs=replace(ALIKE, **changes))


@pytest.mark.parametrize(
    ("step", "evidence", "elapsed_s", "expected"),
    [
        (SHADOW, SHADOWED, 59.9, Wait()),
        (SHADOW, SHADOWED, 60.0, Advance()),
        (CANARY, CANARIED, 60.0, Advance()),
        (CANARY, SHADOWED, 60.0, Wait()),
        (CANARY, SHADOWED, 179.9, Wait()),
        (CANARY, SHADOWED, 180.0, "X-Client-Id"),
        (SHADOW, Evidence(), 0.0, Wait()),
        (SHADOW, Evidence(), 89.9, Wait()),
        (SHADOW, Evidence(), 90.0, "compared 0 of at least 50 images in 90 s: too few came; .* larger share"),
        (
            SHADOW,
            pairs(images=2, dropped=70),
            90.0,
            "compared 2 of at least 50 .* 70 more were dropped .* add replicas",
        ),
        (SHADOW, Evidence(fast(1000), fast(0, 4)), 1.0, "4 of 4 images failed"),
        (CANARY, Evidence(fast(1000), fast(150, 50)), 1.0, "50 of 200 images failed"),
        (SHADOW, Evidence(fast(1000), fast(100, seconds=0.06), ALIKE), 1.0, "took longer than"),
        (SHADOW, Evidence(fast(40), fast(100, seconds=0.06), ALIKE), 60.0, Advance()),
        (SHADOW, pairs(candidate_empties=100, matched=0), 1.0, "100 of 100 answers are empty"),
        (SHADOW, pairs(candidate_empties=90, serving_empties=90), 60.0, Advance()),
        (SHADOW, pairs(matched=99, overlapping=99), 1.0, "99 of the 200 boxes"),
        (SHADOW, pairs(matched=100, overlapping=100), 60.0, Advance()),
        (CANARY, pairs(matched=140), 1.0, "140 of 190 boxes the class"),
        (SHADOW, pairs(score_shift=-188 * 210_000), 1.0, "-0.210 on average"),
        (SHADOW, pairs(score_shift=188 * 210_000), 1.0, r"\+0.210 on average"),
        (SHADOW, pairs(score_shift=188 * 190_000), 60.0, Advance()),
        (SHADOW, pairs(images=49, matched=0), 1.0, Wait()),
        (SHADOW, pairs(serving_boxes=49, matched=0, overlapping=0), 60.0, Advance()),
    ],
)
def test_judgements(step: TrialStep, evidence: Evidence, elapsed_s: float, expected: object) -> None:
    """A breach ends a step at once, time and enough images end it well, lack of images ends it late."""
    judgement = judge(step, evidence, elapsed_s, LIMITS)
    if isinstance(expected, str):
        assert isinstance(judgement, Abort)
        assert re.search(expected, judgement.reason)
    else:
        assert judgement == expected


@pytest.mark.parametrize(("step", "permanent"), [(SHADOW, False), (CANARY, True)])
def test_only_a_shadow_that_could_not_measure_is_tried_again(step: TrialStep, *, permanent: bool) -> None:
    """Each canary that ends puts clients back to the old version; a breach is final in either."""
    starved = judge(step, Evidence(), 1000.0, LIMITS)
    assert isinstance(starved, Abort)
    assert starved.permanent is permanent
    breach = judge(step, Evidence(fast(1000), fast(0, 60)), 1.0, LIMITS)
    assert isinstance(breach, Abort)
    assert breach.permanent


LATE = Evidence(fast(1000), fast(100, seconds=0.06), ALIKE)
RENAMED = pairs(matched=20)
FORCED, CHANGED = Order(force="known"), Order(allow_contract_change=True)


@pytest.mark.parametrize(
    ("order", "evidence", "expected"),
    [
        (FORCED, LATE, r"waived \(known\): 100 of 100 images took longer"),
        (CHANGED, LATE, None),
        (CHANGED, RENAMED, r"waived \(a breaking change is allowed\): it finds 20 of the 200 boxes"),
        (FORCED, RENAMED, None),
        (CHANGED, pairs(overlapping=20, matched=20), None),
        (CHANGED, pairs(matched=100, score_shift=-100 * 210_000), None),
        (FORCED, Evidence(fast(1000), fast(150, 50), ALIKE), None),
        (CHANGED, pairs(candidate_empties=100, matched=0), None),
        (FORCED, SHADOWED, "^$"),
    ],
)
def test_a_trial_does_not_demand_what_the_promotion_waived(
    order: Order, evidence: Evidence, expected: str | None
) -> None:
    """Latency with force, other classes of the same boxes with a contract change; what counts all the same is None."""
    judgement = judge(SHADOW, evidence, 60.0, LIMITS, order)
    if expected is None:
        assert isinstance(judgement, Abort)
    else:
        assert isinstance(judgement, Advance)
        assert re.search(expected, judgement.waived)


COUNT = st.integers(0, 300)
TALLIES = st.builds(fast, COUNT, st.integers(0, 20), st.sampled_from((0.02, 0.03, 0.1)))
ANY = st.builds(Evidence, TALLIES, TALLIES, st.builds(Pairs, *[COUNT] * 5, st.integers(-(10**8), 10**8)))


@given(evidence=ANY, errors=st.integers(1, 500), elapsed_s=st.floats(0.0, 200.0))
def test_more_failures_never_help(evidence: Evidence, errors: int, elapsed_s: float) -> None:
    """What is given up stays given up when the candidate fails on more images."""
    worse = merge(evidence, Evidence(candidate=Tally(errors=errors)))
    if isinstance(judge(SHADOW, evidence, elapsed_s, LIMITS), Abort):
        assert isinstance(judge(SHADOW, worse, elapsed_s, LIMITS), Abort)


@given(evidence=ANY, sooner=st.floats(0.0, 200.0), later=st.floats(0.0, 200.0), step=st.sampled_from((SHADOW, CANARY)))
def test_time_only_leads_to_an_end(evidence: Evidence, sooner: float, later: float, step: TrialStep) -> None:
    """With the same evidence a step that has ended stays ended the same way, and at last every step ends."""
    sooner, later = sorted((sooner, later))
    judgement = judge(step, evidence, sooner, LIMITS)
    if not isinstance(judgement, Wait):
        assert type(judge(step, evidence, later, LIMITS)) is type(judgement)
    assert not isinstance(judge(step, evidence, LIMITS.patience * step.length_s, LIMITS), Wait)
