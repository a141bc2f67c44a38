"""What people and tools are told of a rollout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.evidence import Evidence, Tally
from models.rollout.gates import Verdict
from models.rollout.messages import Attempt, Failure, MemberPhase, Report, Target
from models.rollout.order import Order
from models.rollout.policy import Pin, Rejection
from models.rollout.probation import ProbationLimits
from models.rollout.state import Phase, State, Timing, View
from models.rollout.status import status
from models.weights.registry import Desired

ONE, TWO = Target("1", "d1", "p1"), Target("2", "d2", "p2")
COMMITTED = Attempt(4, 1, ONE, Target("0", "d0", "p0"))
TRY = Attempt(5, 2, TWO, ONE)
WANTED = Desired("m", "2", "d2", "ready", "p2")
NAME = "SERVE_REPLICA::default#detector#abc"
TRIED = Order(shadow_s=60.0, canary=(0.05,), step_s=30.0)


def _report(phase: MemberPhase = "idle", attempt: Attempt | None = None, **more: object) -> Report:
    key = attempt.key if attempt else None
    return replace(Report(NAME, 1, 4, "d1", phase, key), **more)  # type: ignore[arg-type]


def _state(phase: Phase = "idle", report: Report | None = None, **more: object) -> State:
    view = View(admitted=True, seen=0.0, report=report)
    base = State("m", phase=phase, incarnation=2, committed=COMMITTED, members={NAME: view}, heard=True, desired=WANTED)
    if phase not in ("idle", "boot", "deposed", "fetch"):
        base = replace(base, attempt=TRY, target=TWO)
    return replace(base, **more)  # type: ignore[arg-type]


_LATER = (Rejection(TWO, Failure("fetch", "the store is down", permanent=False), 9.0),)
_REFUSED = (Rejection(TWO, Failure("verify", "a byte is lost", permanent=True), None),)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (_state("idle", desired=replace(WANTED, version="1", digest="d1")), ("serving", None, None)),
        (_state("fetch", target=TWO), ("preparing", "fetch", None)),
        (_state("judge"), ("judging", "judge", None)),
        (_state("prepare"), ("preparing", "load", None)),
        (_state("trial", stage=1, order=TRIED), ("shadow", "shadow", None)),
        (_state("prepare", stage=1, order=TRIED), ("shadow", "load", None)),
        (_state("hold", stage=1, advanced=1, order=TRIED), ("canary", "hold", None)),
        (_state("trial", stage=2, advanced=1, order=TRIED), ("canary", "canary", None)),
        (_state("hold", stage=2, advanced=2, order=TRIED), ("holding", "hold", None)),
        (_state("idle", desired=replace(WANTED, version="1", digest="d1"), probation=0.0), ("probation", None, None)),
        (_state("hold"), ("holding", "hold", None)),
        (_state("commit"), ("holding", "commit", None)),
        (_state("idle", rejections=_REFUSED), ("rejected", "verify", "a byte is lost")),
        (_state("idle", desired=replace(WANTED, state="")), ("rejected", "fetch", "version 2 is not ready")),
        (_state("boot", committed=None, desired=None), ("starting", None, None)),
        (_state("bootstrap", committed=None), ("starting", "load", None)),
        (_state("idle", committed=None, rejections=_REFUSED), ("rejected", "verify", "a byte is lost")),
        (_state("idle", committed=None, rejections=_LATER), ("starting", "fetch", "the store is down")),
        (_state("idle", rejections=_LATER), ("rejected", "fetch", "the store is down")),
    ],
)
def test_the_table_of_conditions(state: State, expected: tuple[str, str | None, str | None]) -> None:
    """State, step and reason say in one word each where the rollout is and why."""
    found = status(state, 0.0)
    assert (found["state"], found["step"], found["reason"]) == expected


def test_a_status_has_exactly_the_keys_of_the_interface() -> None:
    """The shape of GET /v1/models/{m}/rollout, replicas named by the last part of their actor's name."""
    found = status(_state("prepare", _report("preparing", TRY)), 0.0)
    assert found == {
        "model": "m",
        "desired": "2",
        "serving": "1",
        "generation": 4,
        "state": "preparing",
        "step": "load",
        "reason": None,
        "trial": None,
        "probation": None,
        "verdicts": [],
        "replicas": [{"id": "abc", "version": "1", "state": "preparing"}],
    }


def test_a_pin_is_what_is_desired() -> None:
    """After a rollback the status names the version that was wanted back, whatever the alias says."""
    assert status(_state(pin=Pin(Target("0", "d0", "r"), ("p2", "2"))), 0.0)["desired"] == "0"


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (View(), ("joining", None)),
        (View(admitted=True), ("silent", None)),
        (View(admitted=True, seen=0.0, died_at=1.0, report=_report()), ("dead", "1")),
        (View(admitted=True, seen=0.0, report=_report()), ("serving", "1")),
        (View(admitted=True, seen=-100.0, report=_report()), ("silent", "1")),
        (View(admitted=True, seen=0.0, report=_report("holding", TRY)), ("holding", "1")),
        (View(admitted=True, seen=0.0, report=_report("prepared", TRY)), ("prepared", "1")),
        (View(admitted=True, seen=0.0, report=_report("prepared", TRY, trial=1)), ("trying", "1")),
        (View(admitted=True, seen=0.0, report=_report(digest="d2")), ("serving", "2")),
        (View(admitted=True, seen=0.0, report=_report(digest="unknown")), ("serving", None)),
    ],
)
def test_the_states_of_replicas(view: View, expected: tuple[str, str | None]) -> None:
    """What a replica does and which version it answers with, as far as it has said."""
    (found,) = status(_state("prepare", members={NAME: view}), 1.0)["replicas"]
    assert (found["state"], found["version"]) == expected


def test_a_trial_under_way_shows_its_step_what_is_left_and_what_was_seen() -> None:
    """The number and share of the step, its time left and the evidence of every replica that runs it, added up."""
    seen = Evidence(Tally(40), Tally(10, errors=2))
    report = _report("prepared", TRY, trial=2, evidence=seen)
    behind = _report("prepared", TRY, replica="b", trial=1, evidence=seen)
    views = {name: View(admitted=True, seen=0.0, report=each) for name, each in ((NAME, report), ("b", behind))}
    state = _state("trial", members={**views, "c": views[NAME]}, stage=2, begun=5.0, order=TRIED, advanced=1)
    found = status(state, 15.0)["trial"]
    assert found is not None
    assert (found["mode"], found["number"], found["of"], found["fraction"]) == ("canary", 2, 2, 0.05)
    assert found["left_s"] == 20.0
    assert (found["evidence"]["serving_images"], found["evidence"]["candidate_errors"]) == (80, 4)


def test_a_probation_shows_its_time_left_and_both_versions() -> None:
    """What the version before had shown, and what the new one has shown since, of those that serve it."""
    report = _report(watch=Evidence(Tally(7)), watch_before=Evidence(Tally(50)))
    members = {NAME: View(admitted=True, seen=0.0, report=report)}
    timing = Timing(probation=ProbationLimits(window_s=600.0))
    found = status(_state(members=members, probation=100.0, timing=timing), 110.0)["probation"]
    assert found is not None
    assert found["left_s"] == 590.0
    assert (found["evidence"]["serving_images"], found["evidence"]["candidate_images"]) == (50, 7)


def test_the_verdicts_of_the_gates_are_shown() -> None:
    """Each with its reason and its numbers."""
    verdict = Verdict("quality", passed=True, reason="better", measured={"candidate": 0.5})
    (found,) = status(_state(verdicts=(verdict,)), 0.0)["verdicts"]
    assert found == {
        "gate": "quality",
        "passed": True,
        "waived": False,
        "reason": "better",
        "measured": {"candidate": 0.5},
    }
