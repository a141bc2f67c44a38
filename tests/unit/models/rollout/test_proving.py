"""Trial steps before a commit, probation after it: the coordinator's transitions, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_run import BLIND, ONE, SERVING, THREE, TWO, Run, wants

from models.evidence import LATENCY_BINS, SCORE_BINS, Evidence, Pairs, Tally
from models.rollout import answers
from models.rollout.gates import Verdict
from models.rollout.messages import Attempt, Directive, Failure, Report, Target
from models.rollout.order import PLAIN, Order
from models.rollout.policy import Pin, decode_rejections, encode_rejections
from models.rollout.probation import ProbationLimits
from models.rollout.state import (
    Audit,
    Claim,
    Claimed,
    Decide,
    Decided,
    Fetch,
    Fetched,
    Judge,
    Judged,
    JudgeFailed,
    MemberDied,
    MoveAlias,
    Polled,
    RollbackAsked,
    SavePin,
    Tick,
    Timing,
)
from models.rollout.trial import TrialLimits

TRIED = Order(shadow_s=10.0, canary=(0.05, 0.25), step_s=20.0)
GOOD = Evidence(Tally(100), Tally(200), Pairs(images=100))
FAILING = Evidence(Tally(100), Tally(100, errors=50), Pairs(images=60))
TIMING = Timing(trial=TrialLimits(least_images=50), probation=ProbationLimits(window_s=600.0))


def on_trial(*members: str, order: Order = TRIED) -> tuple[Run, Attempt]:
    """Return a run in which all members have prepared version 2, whose promotion asks for ``order``."""
    run = Run(*members, timing=TIMING)
    attempt = run.prepare(TWO, order=order)
    for member in members:
        run.report(member, "prepared", 1)
    return run, attempt


def told(run: Run, member: str) -> Directive | None:
    """Return what that member is told now."""
    return answers.directive_for(run.state, member, run.now)


# Gates


def test_a_target_is_judged_once_it_is_fetched_and_claimed_only_if_it_passes() -> None:
    """The gates compare it with what serves, under its promotion's order; their word goes into the record."""
    run = Run("a")
    order = Order(force="we know")
    run.feed(wants(TWO, order))
    assert run.feed(Fetched(TWO)) == (Judge(TWO, ONE, order),)
    verdict = Verdict("quality", passed=True, reason="0.5 against 0.4", measured={"candidate": 0.5})
    (claim,) = run.feed(Judged(TWO, (verdict,)))
    assert isinstance(claim, Claim)
    assert run.state.verdicts == (verdict,)
    assert (run.last_note.result, run.last_note.reason) == ("judged", "quality: 0.5 against 0.4")
    assert run.last_note.measured == {"quality_candidate": 0.5}


def test_a_target_that_a_gate_refuses_is_rejected_for_good() -> None:
    """The gate is the step, its reason the reason; nothing was claimed, so nothing is aborted."""
    run = Run("a")
    run.feed(wants(TWO))
    run.feed(Fetched(TWO))
    (audit,) = run.feed(Judged(TWO, (Verdict("contract", passed=False, reason="it lacks a class"),)))
    assert audit == Audit(TWO, "rejected", Failure("contract", "it lacks a class", permanent=True))
    assert run.feed(wants(TWO), at=1000.0) == ()
    assert run.state.phase == "idle"


def test_gates_that_cannot_be_asked_are_asked_again_later() -> None:
    """A registry that is down decides nothing."""
    run = Run("a")
    run.feed(wants(TWO))
    run.feed(Fetched(TWO))
    down = Failure("quality", "the registry is down", permanent=False)
    assert run.feed(JudgeFailed(TWO, down)) == (Audit(TWO, "rejected", down),)
    assert run.feed(Tick(), at=1.1) == (Fetch(TWO),)


def test_neither_the_first_version_nor_a_rollback_is_judged() -> None:
    """There is nothing to compare the one with; the other has served before and must not wait."""
    first = Run(committed=None)
    first.feed(wants(ONE))
    assert isinstance(first.feed(Fetched(ONE))[0], Claim)
    back = Run("a")
    (_, fetch) = back.feed(RollbackAsked("r"))
    assert isinstance(fetch, Fetch)
    assert isinstance(back.feed(Fetched(fetch.target))[0], Claim)


def test_a_late_verdict_changes_nothing() -> None:
    """It is about something that was superseded while it was judged."""
    run = Run("a")
    run.feed(wants(TWO))
    run.feed(Fetched(TWO))
    run.feed(wants(THREE))
    before = run.state
    assert run.feed(Judged(TWO, ())) == ()
    assert run.feed(JudgeFailed(TWO, BLIND)) == ()
    assert run.state == before


@pytest.mark.parametrize(("force", "refused"), [("", True), ("we know", False)])
def test_a_candidate_that_is_too_slow_on_most_replicas_is_refused(force: str, *, refused: bool) -> None:
    """The replica whose ratio is the median speaks: one that was disturbed refuses nothing, most of them do."""
    run = Run("a", "b", "c")
    attempt = run.prepare(TWO, order=Order(force=force))
    for member, golden_ms in (("a", (25.0, 10.0)), ("b", (10.0, 10.0)), ("c", (40.0, 10.0))):
        run.feed(Polled(Report(member, 1, 4, "d1", "prepared", attempt.key, "d2", golden_ms=golden_ms)))
    (verdict,) = run.state.verdicts
    assert verdict.measured == {"candidate_ms": 25.0, "serving_ms": 10.0, "factor": 2.0}
    if refused:
        audit, decide = run.effects
        assert isinstance(audit, Audit)
        assert (audit.failure.step, audit.failure.permanent, decide) == ("latency", True, Decide(5, "ABORT"))
    else:
        assert run.state.phase == "hold"


# Trials


def test_a_promotion_with_steps_goes_through_each_of_them_before_it_is_committed() -> None:
    """Shadow without a hold, each canary step in a hold of all, the commit in another one."""
    run, attempt = on_trial("a", "b")
    step = told(run, "a")
    assert step is not None
    assert (step.kind, step.step and step.step.mode, step.attempt) == ("trial", "shadow", attempt)
    run.tried("a", "b", stage=1, evidence=GOOD)
    assert told(run, "a") is None
    run.tried("a", "b", stage=1, evidence=GOOD, at=9.9)
    assert run.state.phase == "trial"
    run.tried("a", "b", stage=1, evidence=GOOD, at=10.2)
    for number, end in ((2, 30.5), (3, 51.0)):
        assert told(run, "a") == Directive("hold", 2, attempt, stage=number - 1)
        run.tried("a", stage=number - 1, phase="holding")
        assert told(run, "a") is None
        run.tried("b", stage=number - 1, phase="holding")
        step = told(run, "a")
        assert step is not None
        assert (step.kind, step.step and step.step.number) == ("trial", number)
        run.tried("a", "b", stage=number, evidence=GOOD)
        run.tried("a", "b", stage=number, evidence=GOOD, at=end)
    assert run.state.phase == "hold"
    run.tried("a", stage=3, phase="holding")
    assert run.tried("b", stage=3, phase="holding") == (Decide(5, "COMMIT"),)
    run.feed(Decided(5, "COMMIT"))
    assert run.state.committed == attempt
    assert run.notes == ["desired", "fetched", "judged", "prepared", "shadow", "canary", "canary"]
    assert run.last_note.measured["candidate_images"] == 400


def test_a_failing_candidate_is_given_up_as_soon_as_it_shows() -> None:
    """Long before the step is over, on the replicas that run it, for good, with the numbers."""
    run, _ = on_trial("a", "b")
    run.tried("a", stage=1, evidence=FAILING, at=0.5)
    audit, decide = run.effects
    assert isinstance(audit, Audit)
    assert (audit.failure.step, audit.failure.permanent, decide) == ("shadow", True, Decide(5, "ABORT"))
    assert "50 of 150 images failed" in audit.failure.reason
    assert told(run, "a") == Directive("stay", 2)
    run.feed(Decided(5, "ABORT"))
    assert run.feed(wants(TWO, TRIED), at=5000.0) == ()


def test_evidence_of_another_step_does_not_count() -> None:
    """What the shadow has shown is over when the canary begins."""
    run, _ = on_trial("a", order=Order(shadow_s=1.0, canary=(0.5,), step_s=1.0))
    run.tried("a", stage=1, evidence=GOOD)
    run.tried("a", stage=1, evidence=GOOD, at=1.0)
    run.tried("a", stage=1, phase="holding", evidence=GOOD)
    run.tried("a", stage=2)
    run.tried("a", stage=2, at=2.5)
    assert run.state.phase == "trial", "the second step has seen nothing yet"
    run.tried("a", stage=2, evidence=GOOD, at=2.8)
    assert run.state.phase == "hold"


@pytest.mark.parametrize(
    ("event", "result", "step"),
    [
        (wants(THREE), "superseded", "trial"),
        (wants(ONE), "superseded", "trial"),
        (RollbackAsked("r"), "rejected", "rollback"),
    ],
)
def test_a_trial_ends_at_once(event: object, result: str, step: str) -> None:
    """A newer promotion, one of what serves, or a rollback: the attempt is aborted and every replica drops it."""
    run, _ = on_trial("a")
    run.tried("a", stage=1, evidence=GOOD)
    effects = run.feed(event)  # type: ignore[arg-type]
    assert Decide(5, "ABORT") in effects
    audit = next(effect for effect in effects if isinstance(effect, Audit))
    assert (audit.result, audit.failure.step) == (result, step)
    found = told(run, "a")
    assert found is not None
    assert found.kind == "stay"


def test_a_replica_that_joins_during_a_trial_follows_once_it_has_prepared() -> None:
    """It prepares, then runs the step under way without a hold; the commit waits for it."""
    run, attempt = on_trial("a", order=Order(canary=(0.5,), step_s=1.0))
    run.tried("a", stage=0, phase="holding")
    run.tried("a", stage=1, evidence=GOOD)
    run.join("n")
    assert told(run, "n") == Directive("prepare", 2, attempt)
    run.tried("a", stage=1, evidence=GOOD, at=1.0)
    assert (run.state.phase, run.state.advanced) == ("prepare", 1)
    run.report("n", "prepared", 2)
    found = told(run, "n")
    assert found is not None
    assert found.kind == "trial"
    assert run.state.phase == "prepare"
    run.tried("n", stage=1)
    assert run.state.phase == "hold"


def test_a_hold_that_fails_does_not_repeat_the_steps_that_ended_well() -> None:
    """The next attempt begins with what comes after them."""
    run, _ = on_trial("a", order=Order(shadow_s=1.0))
    run.tried("a", stage=1, evidence=GOOD)
    run.tried("a", stage=1, evidence=GOOD, at=1.0)
    assert run.state.phase == "hold"
    run.feed(Tick(), at=1.4)
    run.feed(Decided(5, "ABORT"))
    run.feed(Tick(), at=2.0)
    (claim,) = run.fetched(TWO)
    assert isinstance(claim, Claim)
    run.feed(Claimed(claim.attempt, "won"))
    run.report("a", "prepared", 90)
    assert run.state.phase == "hold"


def test_a_replica_that_waited_in_vain_for_the_canary_ends_the_attempt() -> None:
    """Its hold ran out, it put ABORT and says so; the others must not go on with what can never be committed."""
    run, _ = on_trial("a", "b", order=Order(canary=(0.5,), step_s=1.0))
    run.tried("a", "b", stage=0, phase="holding")
    run.tried("a", stage=1, evidence=GOOD)
    audit, decide = run.feed(Polled(Report("b", 70, 4, "d1", settled=5)))
    assert isinstance(audit, Audit)
    assert (audit.result, decide) == ("aborted", Decide(5, "ABORT"))


def test_a_trial_judges_no_latency_that_the_promotion_waived_and_says_so() -> None:
    """The same evidence ends a promotion that waived nothing; of a forced one, the record tells what it waived."""
    late, early = of_bin(90, 18), of_bin(60, 18)
    slow = Evidence(early, late, Pairs(images=200))
    plain, _ = on_trial("a", order=Order(shadow_s=10.0))
    plain.tried("a", stage=1, evidence=slow, at=1.0)
    assert plain.state.phase == "abort"
    forced, _ = on_trial("a", order=Order(shadow_s=10.0, force="known to be slower"))
    forced.tried("a", stage=1, evidence=slow, at=1.0)
    forced.tried("a", stage=1, evidence=slow, at=11.5)
    assert forced.state.phase == "hold"
    assert forced.last_note.result == "shadow"
    assert "waived (known to be slower): 200 of 200 images took longer than" in forced.last_note.reason


def test_a_shadow_that_found_no_room_ends_and_is_tried_again_later() -> None:
    """Half a minute after its promised end, with its numbers; the version itself is not condemned."""
    run, _ = on_trial("a", order=Order(shadow_s=600.0))
    starved = Evidence(Tally(5000), Tally(2), Pairs(images=2, dropped=270))
    run.tried("a", stage=1, evidence=starved)
    run.tried("a", stage=1, evidence=starved, at=629.0)
    assert run.state.phase == "trial"
    run.tried("a", stage=1, evidence=starved, at=630.0)
    audit, decide = run.effects
    assert isinstance(audit, Audit)
    assert (audit.result, audit.failure.step, audit.failure.permanent) == ("rejected", "shadow", False)
    assert "compared 2 of at least 50 images in 630 s; 270 more were dropped" in audit.failure.reason
    assert "longer shadow or with none, or add replicas" in audit.failure.reason
    assert decide == Decide(5, "ABORT")
    run.feed(Decided(5, "ABORT"))
    assert run.feed(Tick(), at=640.0) == (Fetch(TWO),)


def test_deaths_while_it_is_tried_speak_against_it() -> None:
    """As those while it is loaded do."""
    run, _ = on_trial("a", "b", "c", "d", order=Order(shadow_s=60.0))
    run.tried("a", "b", "c", "d", stage=1)
    for member in "abc":
        run.feed(MemberDied(member))
    effects = run.feed(Tick(), at=1.0)
    assert Audit(TWO, "rejected", Failure("shadow", "3 replicas died while they tried it", permanent=True)) in effects


def test_a_step_that_does_not_begin_everywhere_is_given_up_for_a_while() -> None:
    """A replica that stands still neither stops the judgement of the others nor holds them up for ever."""
    run, _ = on_trial("a", "b", order=Order(shadow_s=60.0))
    run.tried("a", stage=1)
    (audit, _) = run.feed(Tick(), at=121.0)
    assert isinstance(audit, Audit)
    assert (audit.failure.step, audit.failure.permanent) == ("shadow", False)
    assert "only 1 of 2 replicas began it" in audit.failure.reason


# Probation


def promoted(run: Run, order: Order = PLAIN) -> Attempt:
    """Let version 2 be committed and every member flip."""
    attempt = run.prepare(TWO, order)
    members = list(run.state.members)
    for member in members:
        run.report(member, "prepared", 1)
    for member in members:
        run.report(member, "holding", 2)
    run.feed(Decided(attempt.generation, "COMMIT"))
    return attempt


def watched(run: Run, member: str, seq: int, since: Tally, *, at: float) -> tuple[object, ...]:
    """Let a member report what the new version has shown since its flip; the old one had 1000 images, none failed."""
    report = Report(member, seq, 5, "d2", watch=Evidence(since), watch_before=Evidence(Tally(1000)))
    return run.feed(Polled(report), at=at)


def test_a_breach_on_probation_brings_the_version_before_back() -> None:
    """One event: the bad one is refused for good, the pin is saved, the old one fetched; then the alias follows."""
    run = Run("a", "b", timing=TIMING)
    promoted(run)
    assert watched(run, "a", 3, Tally(100), at=10.0) == ()
    effects = watched(run, "b", 3, Tally(40, errors=60), at=11.0)
    audit, save, fetch = effects
    back = Target("1", "d1", "probation-5")
    pin = Pin(back, ("p2", "2"))
    assert isinstance(audit, Audit)
    assert (audit.target, audit.result, audit.failure.step) == (TWO, "rolled back", "probation")
    assert "60 of 200 images failed" in audit.failure.reason
    assert (save, fetch) == (SavePin(pin), Fetch(back))
    (claim,) = run.feed(Fetched(back))
    assert isinstance(claim, Claim)
    assert claim.attempt.rollback
    run.feed(Claimed(claim.attempt, "won"))
    for number, phase in enumerate(("prepared", "holding")):
        for member in "ab":
            run.report(member, phase, 10 + number)  # type: ignore[arg-type]
    assert MoveAlias(pin) in run.feed(Decided(6, "COMMIT"))
    assert run.state.probation is None
    run.feed(wants(back))
    assert run.state.pin is None
    assert run.feed(wants(TWO), at=5000.0) == (), "no poll brings it back"


def test_a_newer_promotion_comes_after_the_way_back() -> None:
    """It has nothing to do with the breach: the fleet goes back first, then on to it, and its alias stays."""
    run = Run("a", timing=TIMING)
    promoted(run)
    run.feed(wants(THREE))
    effects = watched(run, "a", 3, Tally(0, errors=60), at=11.0)
    pin = Pin(Target("1", "d1", "probation-5"), ("p3", "3"), passing=True)
    assert SavePin(pin) in effects
    assert Audit(THREE, "superseded", Failure("fetch", "a newer promotion superseded it", permanent=False)) in effects
    assert effects[-1] == Fetch(pin.target)
    (claim,) = run.feed(Fetched(pin.target))
    assert isinstance(claim, Claim)
    run.feed(Claimed(claim.attempt, "won"))
    run.report("a", "prepared", 10)
    run.report("a", "holding", 11)
    effects = run.feed(Decided(6, "COMMIT"))
    assert SavePin(None) in effects
    assert not any(isinstance(effect, MoveAlias) for effect in effects)
    assert effects[-1] == Fetch(THREE)


def test_a_new_life_does_not_let_a_passing_rollback_move_the_alias() -> None:
    """The actor died between the commit and the end of the pin: the newer promotion still stands."""
    pin = Pin(Target("1", "d1", "probation-5"), ("p3", "3"), passing=True)
    run = Run("a", committed=Attempt(6, 1, pin.target, TWO, rollback=True), pin=pin)
    assert run.feed(wants(THREE)) == (SavePin(None), Fetch(THREE))


def test_a_version_that_outlives_its_probation_is_proven() -> None:
    """After the window nothing that it shows brings the old one back by itself."""
    run = Run("a", timing=TIMING)
    promoted(run)
    watched(run, "a", 3, Tally(100), at=600.0)
    run.feed(Tick(), at=600.1)
    assert (run.last_note.result, run.last_note.target) == ("proven", TWO)
    assert watched(run, "a", 4, Tally(0, errors=1000), at=601.0) == ()


def test_a_rollback_and_a_window_of_nothing_mean_no_probation() -> None:
    """What was returned to has nothing behind it; 0 seconds switch it off."""
    run = Run("a", timing=replace(TIMING, probation=ProbationLimits(window_s=0.0)))
    promoted(run)
    assert run.state.probation is None
    rolled_back = Run("a", committed=replace(SERVING, rollback=True), timing=TIMING)
    assert rolled_back.state.probation is None


def test_a_new_life_of_the_actor_goes_on_with_the_probation() -> None:
    """Members still tell what they have seen since their flip; those that do not are judged by nothing."""
    run = Run("a", committed=Attempt(5, 1, TWO, ONE), timing=TIMING)
    assert watched(run, "a", 1, Tally(10), at=1.0) == ()
    audit, *_ = watched(run, "a", 2, Tally(10, errors=40), at=2.0)
    assert isinstance(audit, Audit)
    assert audit.result == "rolled back"


def test_a_manual_rollback_ends_the_probation() -> None:
    """It is under way already: the breach begins no second one."""
    run = Run("a", timing=TIMING)
    promoted(run)
    run.feed(RollbackAsked("r"))
    watched(run, "a", 3, Tally(0, errors=100), at=5.0)
    assert run.state.pin is not None
    assert run.state.pin.target.promotion == "r"


def test_a_version_with_which_replicas_die_on_probation_is_taken_back() -> None:
    """It never answers an image, so nothing else would ever speak against it."""
    run = Run("a", "b", "c", "d", timing=TIMING)
    promoted(run)
    for member in "abc":
        watched(run, member, 3, Tally(0, errors=1), at=1.0)
        run.feed(MemberDied(member))
    audit, *_ = [effect for effect in run.feed(Tick(), at=2.0) if isinstance(effect, Audit)]
    assert audit == Audit(
        TWO, "rolled back", Failure("probation", "3 replicas died while they answered with it", permanent=True)
    )
    assert run.state.pin is not None
    assert run.state.pin.target.digest == "d1"


@pytest.mark.parametrize(("generation", "at"), [(4, 2.0), (5, 700.0)])
def test_deaths_before_the_flip_and_after_the_probation_are_no_fault_of_it(generation: int, at: float) -> None:
    """Replicas also die with their machines; each commit counts from nothing."""
    run = Run("a", "b", "c", "d", timing=TIMING)
    promoted(run)
    for member in "abc":
        run.feed(Polled(Report(member, 3, generation, "d1" if generation == 4 else "d2")), at=at)
        run.feed(MemberDied(member), at=at)
    run.feed(Tick(), at=at + 1.0)
    assert list(run.state.members) == ["d"]
    assert (run.state.lost, run.state.pin) == (0, None)


def test_a_version_of_which_nothing_was_seen_is_not_called_proven() -> None:
    """A window without an answered image shows nothing; the probation ends all the same."""
    run = Run("a", timing=TIMING)
    promoted(run)
    watched(run, "a", 3, Tally(0, errors=2), at=600.0)
    run.feed(Tick(), at=600.1)
    assert (run.last_note.result, run.last_note.target) == ("unproven", TWO)
    assert "nothing was seen of it in 600 s" in run.last_note.reason
    assert run.state.probation is None


def of_bin(latency: int, score: int) -> Tally:
    """Return 200 images with 5 boxes each, all of one time and one score."""
    times, scores = [0] * LATENCY_BINS, [0] * SCORE_BINS
    times[latency], scores[score] = 200, 1000
    return Tally(200, 0, 200, 0, tuple(times), tuple(scores))


SLOWER, BLINDER = of_bin(80, 18), of_bin(60, 2)


@pytest.mark.parametrize(
    ("order", "since", "goes"),
    [
        (PLAIN, SLOWER, True),
        (Order(force="known to be slower"), SLOWER, False),
        (Order(allow_contract_change=True), SLOWER, True),
        (PLAIN, BLINDER, True),
        (Order(force="known to be slower"), BLINDER, True),
        (Order(allow_contract_change=True), BLINDER, False),
        (Order(force="known to be slower", allow_contract_change=True), Tally(200, errors=100), True),
    ],
)
@pytest.mark.parametrize("new_life", [False, True])
def test_probation_does_not_undo_what_the_promotion_waived(
    order: Order, since: Tally, *, goes: bool, new_life: bool
) -> None:
    """Nor does it in a later life of the actor, which reads the order with the alias; errors always count."""
    run = Run("a", timing=TIMING)
    promoted(run, order)
    if new_life:
        run = Run("a", committed=run.state.committed, timing=TIMING)
        run.feed(wants(TWO, order))
    run.feed(Polled(Report("a", 3, 5, "d2", watch=Evidence(since), watch_before=Evidence(of_bin(60, 18)))), at=5.0)
    assert (run.state.pin is not None) is goes


def test_a_new_life_waits_for_the_order_before_it_compares() -> None:
    """Until the alias is read nobody knows what was waived; after it moved on, nobody will."""
    run = Run("a", committed=Attempt(5, 1, TWO, ONE), timing=TIMING)
    slow = Evidence(SLOWER)
    run.feed(Polled(Report("a", 3, 5, "d2", watch=slow, watch_before=Evidence(of_bin(60, 18)))), at=5.0)
    assert run.state.pin is None
    run.feed(wants(TWO), at=6.0)
    assert run.state.pin is not None


# What outlives the actor


def test_what_was_refused_for_good_stays_refused_in_the_next_life() -> None:
    """Until somebody promotes it anew."""
    run, attempt = on_trial("a", order=Order(shadow_s=60.0))
    run.tried("a", stage=1, evidence=FAILING, at=1.0)
    run.feed(Decided(attempt.generation, "ABORT"))
    kept = decode_rejections(encode_rejections(run.state.rejections))
    new = Run("a", timing=TIMING, rejections=kept)
    assert new.feed(wants(TWO)) == ()
    assert new.feed(Tick(), at=5000.0) == ()
    again = replace(TWO, promotion="p9")
    assert new.feed(wants(again)) == (Fetch(again),)


def test_a_latency_that_no_replica_measured_is_told() -> None:
    """Its gate passes, and the record says that nothing was measured."""
    run = Run("a", timing=TIMING)
    run.prepare(TWO)
    run.report("a", "prepared", 1)
    assert run.state.phase == "hold"
    (verdict,) = run.state.verdicts
    assert (verdict.gate, verdict.passed, verdict.waived, verdict.measured) == ("latency", True, False, {})
    assert "not measured" in verdict.reason
    assert "not measured" in run.last_note.reason
