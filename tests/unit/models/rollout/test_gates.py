"""The gates: what passes, what is refused with which numbers, and what an order waives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rollout.gates import Verdict, contract_gate, latency_gate, quality_gate, refusal
from models.rollout.messages import Failure
from models.rollout.order import PLAIN, Order
from models.types import Contract
from models.weights.registry import Evaluation

SERVING = Contract(task="detect", names=("apple", "pear", "plum"), stride=32, imgsz=320, head="raw")
FORCED = Order(force="the old one is broken")
ALLOWED = Order(allow_contract_change=True)
A, B = "aa" * 32, "bb" * 32


def evaluation(score: float, data: str = A, **changes: object) -> Evaluation:
    """Return an evaluation with mAP50-95 ``score``."""
    whole = Evaluation(data, "scenes/data.yaml", "cd" * 32, score, score, 240, 1000, "test", "2026-01-01")
    return replace(whole, **changes)  # type: ignore[arg-type]


def quality(serving: list[Evaluation], candidate: list[Evaluation], order: Order = PLAIN) -> Verdict:
    """Return the verdict on version 3 of the model ``m``, with a tolerance of 0.3 points."""
    return quality_gate(serving, candidate, order, model="m", version="3", tolerance=0.003)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("apple", "plum", "pear")}, "another order: 1 is 'plum' instead of 'pear'"),
        ({"names": ("apple", "pear", "grape")}, "class 2 is 'grape' instead of 'plum'"),
        ({"names": ("apple", "pear", "plum", "fig")}, "appends 'fig' to 3 classes"),
        ({"names": ("apple", "pear", "plum", "a", "b", "c", "d")}, "'a', 'b', 'c' and 1 more"),
        ({"names": ("apple", "pear")}, "lacks the last 'plum'"),
        ({"names": ("fig", "apple", "pear", "plum")}, "4 classes instead of 3"),
        ({"stride": 64}, "stride is 64 pixels instead of 32"),
        ({"task": "segment"}, "task is segment"),
    ],
)
def test_a_breaking_change_is_refused_unless_it_is_allowed(changes: dict[str, object], words: str) -> None:
    """The refusal says what changed and how to allow it; --force does not, it is about quality."""
    candidate = replace(SERVING, **changes)  # type: ignore[arg-type]
    refused = contract_gate(SERVING, candidate, FORCED)
    assert (refused.passed, refused.waived) == (False, False)
    assert words in refused.reason
    assert "--allow-contract-change" in refused.reason
    allowed = contract_gate(SERVING, candidate, ALLOWED)
    assert (allowed.passed, allowed.waived) == (True, True)
    assert words in allowed.reason


@pytest.mark.parametrize("changes", [{}, {"imgsz": 640}, {"head": "end2end"}, {"dynamic": False}])
def test_what_no_client_sees_breaks_nothing(changes: dict[str, object]) -> None:
    """Image size and head change how a version sees, not what its answers mean."""
    verdict = contract_gate(SERVING, replace(SERVING, **changes), ALLOWED)  # type: ignore[arg-type]
    assert (verdict.passed, verdict.waived) == (True, False)
    assert contract_gate(None, SERVING, PLAIN).passed


def test_two_versions_that_nobody_evaluated_pass_with_a_note() -> None:
    """Evaluation is an offer; the record says that it was not taken."""
    verdict = quality([], [])
    assert verdict.passed
    assert "not evaluated" in verdict.reason
    assert quality([], [evaluation(0.5)]).passed


def test_a_candidate_that_is_not_evaluated_where_production_is_gets_the_command() -> None:
    """Also one that was evaluated on other data only."""
    for own in ([], [evaluation(0.9, B)]):
        verdict = quality([evaluation(0.5)], own)
        assert not verdict.passed
        assert "`steelyard evaluate m 3 --data scenes/data.yaml`" in verdict.reason
        assert A[:12] in verdict.reason
        forced = quality([evaluation(0.5)], own, FORCED)
        assert (forced.passed, forced.waived) == (True, True)
        assert FORCED.force in forced.reason


def test_a_worse_candidate_is_refused_with_both_numbers() -> None:
    """Unless it is forced; allowing a contract change is no force."""
    verdict = quality([evaluation(0.8019)], [evaluation(0.635)], ALLOWED)
    assert not verdict.passed
    assert "0.6350 against 0.8019" in verdict.reason
    assert "--force --reason" in verdict.reason
    assert verdict.measured == {"candidate": 0.635, "serving": 0.8019, "tolerance": 0.003}
    forced = quality([evaluation(0.8019)], [evaluation(0.635)], FORCED)
    assert (forced.passed, forced.waived) == (True, True)


def test_easier_data_hides_nothing() -> None:
    """What both were evaluated on counts, whatever the serving version was evaluated on since."""
    serving = [evaluation(0.8, A), evaluation(0.99, B)]
    assert not quality(serving, [evaluation(0.99, B), evaluation(0.6, A)]).passed
    assert quality(serving, [evaluation(0.99, B)]).passed
    assert quality(serving, [evaluation(0.99, B), evaluation(0.8, A)]).passed
    assert not quality(serving, [evaluation(0.8, A)]).passed, "its latest data is the model's evaluation set"


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quality_passes_exactly_within_the_tolerance(serving: float, candidate: float, tolerance: float) -> None:
    """The loss itself decides, rounding aside; and force turns every refusal into a waived pass."""
    arguments = ([evaluation(serving)], [evaluation(candidate)])
    found = quality_gate(*arguments, PLAIN, model="m", version="3", tolerance=tolerance)
    loss = serving - candidate
    if abs(loss - tolerance) > 1e-8:
        assert found.passed is (loss < tolerance)
    forced = quality_gate(*arguments, FORCED, model="m", version="3", tolerance=tolerance)
    assert forced.passed
    assert forced.waived is not found.passed


@pytest.mark.parametrize(
    ("serving", "candidate", "passed"),
    [(10.0, 15.0, True), (10.0, 15.1, False), (10.0, 2.0, True), (None, 50.0, True), (10.0, None, True)],
)
def test_latency_is_held_against_the_serving_version(
    serving: float | None, candidate: float | None, *, passed: bool
) -> None:
    """At most the factor; without a measurement nothing is judged."""
    verdict = latency_gate(serving, candidate, PLAIN, factor=1.5)
    assert verdict.passed is passed
    assert latency_gate(serving, candidate, FORCED, factor=1.5).passed
    if not passed:
        assert "15.1 ms a golden image against 10.0 ms" in verdict.reason
        assert latency_gate(serving, candidate, FORCED, factor=1.5).waived


def test_the_first_refusal_is_the_failure() -> None:
    """It names the gate as the step and stays until somebody promotes again."""
    good = Verdict("contract", passed=True, reason="fine")
    bad = Verdict("quality", passed=False, reason="worse")
    assert refusal([good]) is None
    assert refusal([good, bad, Verdict("latency", passed=False, reason="slow")]) == Failure(
        "quality", "worse", permanent=True
    )
