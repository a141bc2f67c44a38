"""Strict mode in the actor: who is proven dead is struck off the ledger, then waited for."""

from __future__ import annotations

from coordinator_run import SERVING, Run

from models.rollout import answers
from models.rollout.messages import Report
from models.rollout.state import (
    Admit,
    AdmitAsked,
    ForgetMember,
    MemberDied,
    MemberForgotten,
    Polled,
    RecordMember,
    Timing,
)
from models.rollout.state import Tick as Time

STRICT = Timing(isolation_s=10.0)


def _told(run: Run, replica: str) -> str | None:
    directive = answers.directive_for(run.state, replica, run.now)
    return directive.kind if directive else None


def test_in_strict_mode_a_dead_member_is_counted_out_a_while_after_it_is_struck_off() -> None:
    """The time runs from when it can no longer learn that it is counted, however late the ledger takes that."""
    run = Run("a", "b", timing=STRICT)
    assert run.feed(MemberDied("b"), at=1.0) == (ForgetMember("b"),)
    assert run.feed(MemberDied("b"), at=2.0) == ()
    run.feed(Time(), at=60.0)
    assert set(run.state.members) == {"a", "b"}, "the ledger has not answered"
    run.feed(MemberForgotten("b"), at=61.0)
    run.feed(MemberForgotten("b"), at=65.0)
    run.feed(Time(), at=71.9)
    assert set(run.state.members) == {"a", "b"}
    assert run.feed(Time(), at=72.0) == ()
    assert set(run.state.members) == {"a"}


def test_in_strict_mode_one_that_was_struck_off_must_be_admitted_anew() -> None:
    """Its report does not bring it back: the ledger names it no more, so it would be counted out by a new life."""
    run = Run("a", "b", timing=STRICT)
    run.feed(MemberDied("b"), at=1.0)
    run.feed(Polled(Report("b", 1, SERVING.generation, "d1")), at=1.5)
    assert _told(run, "b") == "rejoin"
    assert run.feed(AdmitAsked("b", SERVING.generation), at=2.0) == (Admit("b", "retry"),)
    run.feed(MemberForgotten("b"), at=2.0)
    run.feed(Time(), at=13.0)
    assert run.feed(AdmitAsked("b", SERVING.generation), at=13.0) == (RecordMember("b"),)


def test_in_strict_mode_a_member_that_asks_again_is_recorded_again() -> None:
    """An earlier life may have struck it off behind this one's back."""
    run = Run("a", timing=STRICT)
    assert run.feed(AdmitAsked("a", SERVING.generation)) == (RecordMember("a"),)


def test_in_strict_mode_a_new_life_holds_nobody_before_those_struck_off_have_fallen_silent() -> None:
    """It cannot know of them; one that recovers nothing committed has nobody to wait for."""
    assert Run("a", timing=STRICT).state.hold_from == 11.0
    assert Run("a", timing=STRICT, committed=None).state.hold_from == 0.0
    assert Run("a").state.hold_from == 0.0


def test_by_default_a_death_costs_its_margin_only() -> None:
    """And a report after the proof counts."""
    run = Run("a", "b")
    assert run.feed(MemberDied("b"), at=1.0) == ()
    assert run.feed(Time(), at=2.0) == (ForgetMember("b"),)
    assert set(run.state.members) == {"a"}
