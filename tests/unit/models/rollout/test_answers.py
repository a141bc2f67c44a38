"""What the actor answers to polls and to starting replicas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.rollout.answers import directive_for, join_answer
from models.rollout.messages import Attempt, Directive, Failure, Join, MemberPhase, Refused, Report, Target
from models.rollout.policy import Rejection
from models.rollout.state import Phase, State, View
from models.weights.registry import Desired

ONE, TWO = Target("1", "d1", "p1"), Target("2", "d2", "p2")
COMMITTED = Attempt(4, 1, ONE, Target("0", "d0", "p0"))
TRY = Attempt(5, 2, TWO, ONE)
WANTED = Desired("m", "2", "d2", "ready", "p2")
NAME = "SERVE_REPLICA::default#detector#abc"


def _report(phase: MemberPhase = "idle", attempt: Attempt | None = None, **more: object) -> Report:
    key = attempt.key if attempt else None
    return replace(Report(NAME, 1, 4, "d1", phase, key), **more)  # type: ignore[arg-type]


def _state(phase: Phase = "idle", report: Report | None = None, **more: object) -> State:
    view = View(admitted=True, seen=0.0, report=report)
    base = State("m", phase=phase, incarnation=2, committed=COMMITTED, members={NAME: view}, heard=True, desired=WANTED)
    if phase not in ("idle", "boot", "deposed", "fetch"):
        base = replace(base, attempt=TRY, target=TWO)
    return replace(base, **more)  # type: ignore[arg-type]


PREPARE, HOLD = Directive("prepare", 2, TRY), Directive("hold", 2, TRY)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (_state("boot", _report()), None),
        (_state("deposed", _report()), None),
        (_state("idle", _report()), None),
        (_state("claim", _report()), None),
        (_state("prepare", _report()), PREPARE),
        (_state("prepare", _report("preparing", TRY)), None),
        (_state("prepare", _report("prepared", TRY)), None),
        (_state("prepare", _report("prepared", replace(TRY, generation=3))), PREPARE),
        (_state("hold", _report("prepared", TRY)), HOLD),
        (_state("hold", _report("holding", TRY)), None),
        (_state("commit", _report("holding", TRY)), None),
        (_state("idle", _report("holding", TRY), committed=TRY), Directive("go", 2, TRY)),
        (_state("idle", _report("holding", TRY), aborted=frozenset({5})), Directive("release", 2, generation=5)),
        (_state("idle", _report("holding", TRY)), None),
        (_state("idle", _report(), committed=TRY), Directive("prepare", 2, TRY)),
        (_state("idle", _report("prepared", TRY), committed=TRY), Directive("go", 2, TRY)),
        (_state("idle", _report("prepared", TRY)), Directive("stay", 2, keep="d2")),
        (_state("idle", _report(candidate="d2")), None),
        (_state("idle", _report(candidate="d9")), Directive("stay", 2, keep="d2")),
    ],
)
def test_the_table_of_directives(state: State, expected: Directive | None) -> None:
    """What a replica is told follows from the actor's state and the replica's last report."""
    assert directive_for(state, NAME, 0.0) == expected


def test_a_candidate_that_was_rejected_is_not_kept() -> None:
    """The refused version is freed in every replica that had it loaded."""
    refused = (Rejection(TWO, Failure("golden", "blind", permanent=True), None),)
    state = _state("idle", _report("failed", TRY, candidate="d2"), rejections=refused)
    assert directive_for(state, NAME, 0.0) == Directive("stay", 2, keep=None)


def test_a_stranger_is_told_to_join() -> None:
    """Whoever polls without being a member must be admitted first."""
    assert directive_for(_state(), "stranger", 0.0) == Directive("rejoin", 2)


def test_a_replica_whose_record_is_on_its_way_is_told_nothing() -> None:
    """It is no member before the ledger says so."""
    state = _state("prepare", members={NAME: View(admitted=False, report=_report())})
    assert directive_for(state, NAME, 0.0) is None


_LATER = (Rejection(TWO, Failure("fetch", "the store is down", permanent=False), 9.0),)
_REFUSED = (Rejection(TWO, Failure("verify", "a byte is lost", permanent=True), None),)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (_state("boot"), None),
        (_state("hold"), Join(COMMITTED, 2, decided=True)),
        (_state("bootstrap", committed=None), Join(TRY, 2, decided=False)),
        (_state("fetch", committed=None), None),
        (_state("idle", committed=None), None),
        (_state("idle", committed=None, heard=False, desired=None), None),
        (
            _state("idle", committed=None, desired=None),
            Refused(Failure("fetch", "no version is promoted: promote one with `steelyard promote`", permanent=False)),
        ),
        (_state("idle", committed=None, rejections=_REFUSED), Refused(_REFUSED[0].failure)),
        (_state("idle", committed=None, rejections=_LATER), None),
        (_state("idle", committed=None, desired=None, restored=TWO, rejections=_LATER), None),
    ],
)
def test_the_table_of_answers_to_starting_replicas(state: State, expected: Join | Refused | None) -> None:
    """The committed release, the first attempt, a reason to give up, or wait."""
    assert join_answer(state, 0.0) == expected
