"""The coordinator's transitions, one by one; their interplay is checked in test_protocol_model.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_run import BLIND, BUSY, ONE, SERVING, THREE, TWO, Run, wants

from models.rollout.messages import Attempt, Failure, Report, Target
from models.rollout.policy import Pin
from models.rollout.state import (
    Admit,
    AdmitAsked,
    Announce,
    Audit,
    Claim,
    Claimed,
    Decide,
    Decided,
    Depose,
    DesiredRead,
    Fetch,
    Fetched,
    FetchFailed,
    ForgetMember,
    MemberDied,
    MemberLeft,
    MemberRecorded,
    MoveAlias,
    Polled,
    RecordMember,
    RollbackAsked,
    SavePin,
    Tick,
    TryTold,
)


def test_a_promotion_goes_through_every_step_to_its_commit() -> None:
    """Desired, fetched, claimed, prepared, held by all, decided: each step in its order, the commit last."""
    run = Run("a", "b")
    attempt = run.prepare()
    assert attempt == Attempt(5, 2, TWO, ONE)
    run.report("a", "preparing", 1)
    run.report("a", "prepared", 2)
    assert run.state.phase == "prepare"
    run.report("b", "prepared", 1)
    assert run.state.phase == "hold"
    run.report("a", "holding", 3)
    assert run.report("b", "holding", 2) == (Decide(5, "COMMIT"),)
    assert run.feed(Decided(5, "COMMIT")) == (Announce(attempt, run.now),)
    assert (run.state.committed, run.state.phase, run.state.note) == (attempt, "idle", "")
    assert run.feed(wants(TWO)) == ()
    assert run.notes == ["desired", "fetched", "judged", "prepared"]
    run.feed(Polled(Report("a", 4, 5, "d2")))
    assert "retired" not in run.notes, "the other one still answers with the old version"
    run.feed(Polled(Report("b", 3, 5, "d2")))
    assert run.notes[-1] == "retired"


def test_nobody_is_told_to_hold_before_all_have_polled_lately() -> None:
    """A member that prepared and was then silent for over a second delays HOLD until it polls again."""
    run = Run("a", "b")
    run.prepare()
    run.report("a", "prepared", 1)
    run.now = 1.5
    run.report("b", "prepared", 1)
    assert run.state.phase == "prepare"
    run.report("a", "prepared", 2)
    assert run.state.phase == "hold"


def test_a_missing_acknowledgement_aborts_backs_off_and_tries_again() -> None:
    """At 0.6 of the deadline ABORT is put; the same version is tried again after a growing pause, not rejected."""
    run = Run("a", "b")
    run.hold("a", "b")
    run.report("a", "holding", 2)
    assert run.feed(Tick(), at=0.29) == ()
    audit, decide = run.feed(Tick(), at=0.31)
    assert isinstance(audit, Audit)
    assert (audit.result, audit.failure.reason) == ("aborted", "only 1 of 2 replicas held in time")
    assert decide == Decide(5, "ABORT")
    assert run.feed(Decided(5, "ABORT")) == ()
    assert (run.state.phase, run.state.aborted, run.state.rejections) == ("idle", {5}, ())
    assert run.feed(Tick(), at=0.5) == ()
    assert run.feed(Tick(), at=0.52) == (Fetch(TWO),)


def test_a_replica_that_aborts_first_wins_over_the_commit() -> None:
    """The ledger said ABORT to the actor's COMMIT: nothing is committed and the version is tried again."""
    run = Run("a")
    run.hold("a")
    assert run.report("a", "holding", 2) == (Decide(5, "COMMIT"),)
    (audit,) = run.feed(Decided(5, "ABORT"))
    assert isinstance(audit, Audit)
    assert (run.state.committed, run.state.phase) == (SERVING, "idle")


@pytest.mark.parametrize(("failure", "again"), [(BLIND, None), (BUSY, 1.0)])
def test_a_failed_preparation_rejects_the_version(failure: Failure, again: float | None) -> None:
    """One replica's failure ends it for all: a permanent one for good, a transient one until the backoff is over."""
    run = Run("a", "b")
    run.prepare()
    run.report("a", "prepared", 1)
    audit, decide = run.report("b", "failed", 1, failure)
    assert (audit, decide) == (Audit(TWO, "rejected", failure), Decide(5, "ABORT"))
    run.feed(Decided(5, "ABORT"))
    assert run.feed(wants(TWO), at=0.9) == ()
    later = run.feed(Tick(), at=1000.0)
    assert later == (() if again is None else (Fetch(TWO),))
    assert run.state.committed == SERVING


def test_a_new_promotion_lifts_a_rejection_and_a_poll_does_not() -> None:
    """The same digest under a new promotion id is tried again."""
    run = Run("a")
    run.feed(wants(TWO))
    run.feed(FetchFailed(TWO, BLIND))
    assert run.feed(wants(TWO)) == ()
    again = replace(TWO, promotion="p9")
    assert run.feed(wants(again)) == (Fetch(again),)


def test_a_newer_promotion_abandons_the_candidate() -> None:
    """Desired changes during PREPARE: the old attempt is aborted, the new version begins."""
    run = Run("a")
    run.prepare(TWO)
    audit, decide = run.feed(wants(THREE))
    assert isinstance(audit, Audit)
    assert (audit.target, audit.result, decide) == (TWO, "superseded", Decide(5, "ABORT"))
    assert run.feed(Decided(5, "ABORT")) == (Fetch(THREE),)


def test_a_result_for_an_abandoned_version_is_ignored() -> None:
    """A late download, claim or decision of something given up changes nothing."""
    run = Run("a")
    run.feed(wants(TWO))
    assert run.feed(wants(THREE)) != ()
    before = run.state
    for event in (Fetched(TWO), FetchFailed(TWO, BLIND), Claimed(Attempt(9, 2, TWO), "won"), Decided(9, "COMMIT")):
        assert run.feed(event) == ()
        assert run.state == before


def test_an_answer_that_names_nothing_unmakes_nothing() -> None:
    """An empty reading neither stops what serves nor what is under way."""
    run = Run("a")
    run.prepare()
    assert run.feed(DesiredRead(None)) == ()
    assert run.state.phase == "prepare"


def test_silence_never_removes_a_member_and_proven_death_does_after_the_margin() -> None:
    """An hour of silence changes nothing; a proven death counts one second later, not at once."""
    run = Run("a", "b")
    run.feed(Tick(), at=3600.0)
    assert set(run.state.members) == {"a", "b"}
    run.feed(MemberDied("a"))
    assert run.feed(Tick(), at=3600.9) == ()
    assert run.feed(Tick(), at=3601.0) == (ForgetMember("a"),)
    assert set(run.state.members) == {"b"}


def test_a_report_after_the_proof_of_death_asks_for_a_new_proof() -> None:
    """Whoever polls is alive."""
    run = Run("a")
    run.feed(MemberDied("a"))
    run.report("a", "idle", 1)
    assert run.feed(Tick(), at=5.0) == ()
    assert "a" in run.state.members


def test_a_member_that_left_is_gone_at_once() -> None:
    """It said itself that it can start no batch."""
    run = Run("a", "b")
    assert run.feed(MemberLeft("a")) == (ForgetMember("a"),)
    assert run.feed(MemberLeft("a")) == ()


def test_deaths_in_the_middle_of_loading_reject_the_version() -> None:
    """Three replicas that die while they prepare a version speak against it; the fourth is not tried."""
    run = Run("a", "b", "c", "d")
    run.prepare()
    for member in "abc":
        run.report(member, "preparing", 1)
        run.feed(MemberDied(member))
    effects = run.feed(Tick(), at=1.0)
    assert Audit(TWO, "rejected", Failure("load", "3 replicas died while they prepared it", permanent=True)) in effects
    assert Decide(5, "ABORT") in effects


def test_a_release_without_any_replica_waits() -> None:
    """Nobody has prepared it, so nothing is committed, however long it takes."""
    run = Run()
    run.prepare()
    assert run.feed(Tick(), at=3600.0) == ()
    assert run.state.phase == "prepare"


def test_a_replica_that_never_prepares_ends_the_attempt_and_is_counted() -> None:
    """Alive and silent: the attempt is given up for a while, with a reason, and the member stays."""
    run = Run("a", "b")
    run.prepare()
    run.report("a", "prepared", 1)
    audit, decide = run.feed(Tick(), at=121.0)
    assert isinstance(audit, Audit)
    assert "1 of 2 replicas did not prepare it in time" in audit.failure.reason
    assert not audit.failure.permanent
    assert decide == Decide(5, "ABORT")


def test_old_and_repeated_reports_are_ignored() -> None:
    """A report that was overtaken cannot take an acknowledgement back."""
    run = Run("a", "b")
    run.hold("a", "b")
    run.report("a", "holding", 5)
    run.report("a", "prepared", 4)
    assert run.report("b", "holding", 2) == (Decide(5, "COMMIT"),)


def test_acknowledgements_of_another_life_do_not_count() -> None:
    """Generation alone is not enough: the incarnation must fit, too."""
    run = Run("a")
    run.hold("a")
    run.feed(Polled(Report("a", 9, 4, "d1", "holding", (5, 1))))
    assert run.state.phase == "hold"


# Admission


def test_a_replica_is_admitted_after_it_is_recorded() -> None:
    """First the ledger, then the answer; repeating the request gives the answer again."""
    run = Run("a")
    assert run.feed(AdmitAsked("n", 4)) == (RecordMember("n"),)
    assert run.feed(AdmitAsked("n", 4)) == ()
    assert run.feed(MemberRecorded("n", in_charge=True)) == (Admit("n", "admitted"),)
    assert run.feed(AdmitAsked("n", 4)) == (Admit("n", "admitted"),)


def test_an_old_generation_is_not_admitted() -> None:
    """Whoever loaded what is no longer committed must load again."""
    assert Run("a").feed(AdmitAsked("n", 3)) == (Admit("n", "stale"),)


def test_nobody_is_admitted_between_hold_and_go() -> None:
    """A newcomer would answer with the old generation beside the new one."""
    run = Run("a")
    run.hold("a")
    assert run.feed(AdmitAsked("n", 4)) == (Admit("n", "retry"),)
    run.report("a", "holding", 2)
    assert run.feed(AdmitAsked("n", 4)) == (Admit("n", "retry"),)
    run.feed(Decided(5, "COMMIT"))
    assert run.feed(AdmitAsked("n", 4)) == (Admit("n", "stale"),)
    assert run.feed(AdmitAsked("n", 5)) == (RecordMember("n"),)


def test_a_newcomer_that_is_being_recorded_delays_hold() -> None:
    """From the request on it counts: HOLD waits until it has prepared, too."""
    run = Run("a")
    run.prepare()
    run.feed(AdmitAsked("n", 4))
    run.report("a", "prepared", 1)
    assert run.state.phase == "prepare"
    run.feed(MemberRecorded("n", in_charge=True))
    run.report("n", "prepared", 1)
    run.report("a", "prepared", 2)
    assert run.state.phase == "hold"


# The first commit


def test_the_first_replica_that_prepares_commits_generation_one() -> None:
    """Nothing committed, one promoted: its first success is the first commit."""
    run = Run(committed=None)
    attempt = run.prepare(ONE)
    assert (attempt, run.state.phase) == (Attempt(1, 2, ONE), "bootstrap")
    assert run.feed(AdmitAsked("a", 1)) == (RecordMember("a"),)
    assert run.feed(MemberRecorded("a", in_charge=True)) == (Decide(1, "COMMIT"),)
    assert run.feed(AdmitAsked("b", 1)) == (Admit("b", "retry"),)
    assert run.feed(Decided(1, "COMMIT")) == (Announce(attempt, 0.0), Admit("a", "admitted"))
    assert run.feed(AdmitAsked("b", 1)) == (RecordMember("b"),)


def test_a_first_version_that_fails_is_rejected_until_another_is_promoted() -> None:
    """The replica's failure rejects it; a newer promotion begins anew."""
    run = Run(committed=None)
    run.prepare(ONE)
    assert run.feed(AdmitAsked("a", 1, BLIND)) == (
        Audit(ONE, "rejected", BLIND),
        Decide(1, "ABORT"),
        Admit("a", "stale"),
    )
    assert run.feed(Decided(1, "ABORT")) == ()
    assert run.feed(wants(TWO)) == (Fetch(TWO),)


def test_a_member_recorded_for_an_aborted_first_attempt_does_not_commit_the_next() -> None:
    """Only a replica that has loaded this very attempt can make it the first commit."""
    run = Run(committed=None)
    run.prepare(ONE)
    run.feed(AdmitAsked("a", 1))
    run.feed(wants(TWO))
    assert run.feed(Decided(1, "ABORT")) == (Admit("a", "stale"), Fetch(TWO))
    run.feed(Fetched(TWO))
    run.feed(Claimed(Attempt(2, 2, TWO), "won"))
    assert run.feed(MemberRecorded("a", in_charge=True)) == ()
    assert run.state.phase == "bootstrap"


def test_what_an_earlier_service_had_committed_comes_first() -> None:
    """A new cluster of an old service starts on its last release under a higher generation, then rolls forward."""
    run = Run(committed=None, restored=ONE, restored_previous=Target("0", "d0", ""), restored_generation=7)
    assert run.effects == (Fetch(ONE),)
    assert run.feed(wants(TWO)) == ()
    (claim,) = run.feed(Fetched(ONE))
    assert claim == Claim(Attempt(8, 2, ONE, Target("0", "d0", "")))


def test_a_restored_release_that_fails_gives_way_to_the_desired_one() -> None:
    """The last release can be damaged: what is promoted is then tried."""
    run = Run(committed=None, restored=ONE, restored_generation=7)
    run.feed(wants(TWO))
    audit, fetch = run.feed(FetchFailed(ONE, BUSY))
    assert (audit, fetch) == (Audit(ONE, "rejected", BUSY), Fetch(TWO))
    assert run.feed(Tick(), at=5.0) == (), "what is under way is not dropped for it"
    run.feed(Fetched(TWO))
    assert run.state.attempt == Attempt(8, 2, TWO, ONE)
    assert run.feed(FetchFailed(TWO, BUSY)) == ()


def test_a_restored_release_survives_a_passing_failure_without_a_registry() -> None:
    """Nothing is promoted as far as anyone knows: the last-good release is tried again after its backoff."""
    run = Run(committed=None, restored=ONE, restored_previous=Target("0", "d0", ""), restored_generation=7)
    assert run.feed(FetchFailed(ONE, BUSY)) == (Audit(ONE, "rejected", BUSY),)
    assert run.state.restored == ONE
    assert run.feed(Tick(), at=0.9) == ()
    assert run.feed(Tick(), at=1.1) == (Fetch(ONE),)
    (claim,) = run.feed(Fetched(ONE))
    assert claim == Claim(Attempt(8, 2, ONE, Target("0", "d0", "")))
    run.feed(Claimed(Attempt(8, 2, ONE, Target("0", "d0", "")), "won"))
    run.feed(AdmitAsked("a", 8, BUSY))
    run.feed(Decided(8, "ABORT"))
    assert run.feed(Tick(), at=5.0) == (Fetch(ONE),)


def test_a_restored_release_that_is_refused_for_good_is_forgotten() -> None:
    """The same bytes will fail again."""
    run = Run(committed=None, restored=ONE, restored_generation=7)
    run.feed(FetchFailed(ONE, BLIND))
    assert (run.state.restored, run.state.restored_previous) == (None, None)
    assert run.feed(Tick(), at=1000.0) == ()


def test_a_first_attempt_from_which_nobody_returns_is_tried_again_later() -> None:
    """Starting replicas that hang: the attempt is given up for a while, with a reason."""
    run = Run(committed=None)
    run.prepare(ONE)
    assert run.feed(Tick(), at=1000.0) == (), "nobody was there to try it"
    run.feed(TryTold("a", 1))
    run.feed(TryTold("a", 1), at=1100.0)
    audit, decide = run.feed(Tick(), at=1121.0)
    assert isinstance(audit, Audit)
    assert audit.failure == Failure(
        "load", "1 starting replicas did not load it in time; it is tried again later", permanent=False
    )
    assert decide == Decide(1, "ABORT")
    run.feed(Decided(1, "ABORT"))
    assert run.feed(Tick(), at=1122.1) == (Fetch(ONE),)


def test_a_first_attempt_that_kills_replica_after_replica_is_refused_for_good() -> None:
    """Deaths on the way count, also over several attempts; failures, successes and farewells are no deaths."""
    run = Run(committed=None)
    run.prepare(ONE)
    for replica in "abcde":
        run.feed(TryTold(replica, 1))
    run.feed(TryTold("f", 9))
    run.feed(MemberLeft("a"))
    for replica in "abf":
        run.feed(MemberDied(replica))
    assert (run.state.deaths, run.state.phase) == (1, "bootstrap")
    run.feed(AdmitAsked("c", 1, BUSY))
    run.feed(Decided(1, "ABORT"))
    run.feed(Tick(), at=1.1)
    run.feed(Fetched(ONE))
    run.feed(Claimed(Attempt(2, 2, ONE), "won"))
    run.feed(TryTold("g", 2))
    run.feed(TryTold("h", 2))
    assert run.feed(MemberDied("g")) == ()
    audit, decide = run.feed(MemberDied("h"))
    assert audit == Audit(ONE, "rejected", Failure("load", "3 replicas died while they prepared it", permanent=True))
    assert decide == Decide(2, "ABORT")


def test_a_replica_that_has_loaded_the_first_attempt_outweighs_those_that_are_late() -> None:
    """Its record is on the way to the ledger: nothing is given up meanwhile."""
    run = Run(committed=None)
    run.prepare(ONE)
    run.feed(TryTold("a", 1))
    run.feed(TryTold("b", 1))
    run.feed(AdmitAsked("a", 1))
    assert run.feed(Tick(), at=1000.0) == ()
    assert run.feed(MemberRecorded("a", in_charge=True)) == (Decide(1, "COMMIT"),)


# Rollback


def test_a_rollback_pins_flips_and_then_moves_the_alias() -> None:
    """The pin is stored first, the old version gets a new generation, the alias follows."""
    run = Run("a")
    run.feed(wants(ONE))
    pin = Pin(Target("0", "d0", "r1"), ("p1", "1"))
    save, fetch = run.feed(RollbackAsked("r1"))
    assert (save, fetch) == (SavePin(pin), Fetch(pin.target))
    run.feed(Fetched(pin.target))
    attempt = Attempt(5, 2, pin.target, ONE, rollback=True)
    assert run.state.attempt == attempt
    run.feed(Claimed(attempt, "won"))
    run.report("a", "prepared", 1)
    run.report("a", "holding", 2)
    assert MoveAlias(pin) in run.feed(Decided(5, "COMMIT"))
    assert run.feed(wants(ONE)) == (MoveAlias(pin),)
    assert run.feed(wants(pin.target)) == (SavePin(None),)
    assert run.state.pin is None


def test_a_promotion_after_a_rollback_ends_the_pin() -> None:
    """Somebody promoted since: that is newer than the rollback."""
    run = Run("a", pin=Pin(Target("1", "d1", "r1"), ("p2", "2")))
    assert run.feed(wants(TWO))[-1] == MoveAlias(Pin(Target("1", "d1", "r1"), ("p2", "2")))
    assert run.feed(wants(THREE)) == (SavePin(None), Fetch(THREE))


def test_a_rollback_with_nothing_before_does_nothing() -> None:
    """There is no version to return to."""
    run = Run("a", committed=Attempt(1, 1, ONE))
    assert run.feed(RollbackAsked("r1")) == ()


def test_a_second_rollback_does_not_return_to_what_was_rolled_back_from() -> None:
    """The bad version comes back by a promotion only, and a rollback of that knows its way again."""
    back = Attempt(5, 2, Target("0", "d0", "r1"), ONE, rollback=True)
    run = Run("a", committed=back)
    assert back.back is None
    assert run.feed(RollbackAsked("r2")) == ()
    run.prepare(ONE)
    assert run.state.attempt is not None
    assert run.state.attempt.back == back.target


# Lives of the actor


def test_a_lost_generation_is_skipped() -> None:
    """Another life holds the number: the next one is claimed."""
    run = Run("a")
    run.feed(wants(TWO))
    run.fetched(TWO)
    assert run.feed(Claimed(Attempt(5, 2, TWO, ONE), "lost")) == (Claim(Attempt(6, 2, TWO, ONE)),)
    assert 5 in run.state.aborted


@pytest.mark.parametrize("how", ["claim", "member"])
def test_a_deposed_actor_acts_no_more(how: str) -> None:
    """Learning of a later life ends this one, whatever happens after."""
    run = Run("a")
    if how == "claim":
        run.feed(wants(TWO))
        run.fetched(TWO)
        assert run.feed(Claimed(Attempt(5, 2, TWO, ONE), "deposed")) == (Depose(),)
    else:
        run.feed(AdmitAsked("n", 4))
        assert run.feed(MemberRecorded("n", in_charge=False)) == (Depose(),)
    assert run.feed(wants(THREE)) == ()
    assert run.state.phase == "deposed"
