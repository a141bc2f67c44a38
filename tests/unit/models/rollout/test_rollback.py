"""What a rollback takes back and where it leads, in every phase of an attempt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from coordinator_run import BLIND, BUSY, ONE, SERVING, THREE, TWO, Run, wants

from models.evidence import Evidence, Pairs, Tally
from models.rollout import answers, rollback
from models.rollout.messages import Attempt, Failure, Report, Target
from models.rollout.order import PLAIN, Order
from models.rollout.policy import Pin, decode_pin, encode_pin
from models.rollout.probation import ProbationLimits
from models.rollout.state import (
    Audit,
    Claim,
    Claimed,
    Decide,
    Decided,
    Fetch,
    Fetched,
    FetchFailed,
    Judged,
    MoveAlias,
    Polled,
    RollbackAsked,
    SavePin,
    Tick,
    Timing,
)
from models.rollout.status import status
from models.rollout.trial import TrialLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.rollout.state import Effect

ZERO = Target("0", "d0", "p0")
GOOD = Evidence(Tally(100), Tally(200), Pairs(images=100))
FAILING = Evidence(Tally(100), Tally(100, errors=50), Pairs(images=60))
TIMING = Timing(trial=TrialLimits(least_images=50), probation=ProbationLimits(window_s=600.0))
HERE = Pin(replace(ONE, promotion="r"), ("p2", "2"))
"""The pin of a rollback that leaves version 1 where it is, over the promotion of version 2."""
CANARY = Order(canary=(0.2, 0.5), step_s=1.0)


def prepared(order: Order = PLAIN) -> Run:
    """Return a run in which every member has prepared version 2."""
    run = Run("a", "b", timing=TIMING)
    run.prepare(TWO, order)
    run.report("a", "prepared", 1)
    run.report("b", "prepared", 1)
    return run


def fetching() -> Run:
    """Version 2 is being fetched."""
    run = Run("a", "b", timing=TIMING)
    run.feed(wants(TWO))
    return run


def judging() -> Run:
    """The gates are asked."""
    run = fetching()
    run.feed(Fetched(TWO))
    return run


def claiming() -> Run:
    """Its generation is being claimed."""
    run = judging()
    run.feed(Judged(TWO, ()))
    return run


def preparing() -> Run:
    """One of two replicas has loaded it."""
    run = Run("a", "b", timing=TIMING)
    run.prepare(TWO)
    run.report("a", "prepared", 1)
    return run


def holding() -> Run:
    """One of two replicas holds for the commit."""
    run = prepared()
    run.report("a", "holding", 2)
    return run


def shadowing() -> Run:
    """The shadow runs."""
    run = prepared(Order(shadow_s=10.0))
    run.tried("a", "b", stage=1, evidence=GOOD)
    return run


def holding_for_the_canary() -> Run:
    """One of two replicas holds for the first canary step."""
    run = prepared(CANARY)
    run.tried("a", stage=0, phase="holding")
    return run


def on_canary() -> Run:
    """The first canary step runs."""
    run = prepared(CANARY)
    run.tried("a", "b", stage=0, phase="holding")
    run.tried("a", "b", stage=1, evidence=GOOD)
    return run


def between_steps() -> Run:
    """The first canary step is over, and a replica that joined meanwhile must prepare before the second."""
    run = on_canary()
    run.join("n")
    run.tried("a", "b", stage=1, evidence=GOOD, at=1.5)
    assert run.state.advanced == 1
    return run


def holding_for_the_second_step() -> Run:
    """One of two replicas holds for the second canary step, with clients on the first."""
    run = on_canary()
    run.tried("a", "b", stage=1, evidence=GOOD, at=1.5)
    run.tried("a", stage=1, phase="holding")
    assert (run.state.stage, run.state.advanced) == (1, 1)
    return run


def aborting() -> Run:
    """Its shadow went wrong a moment ago; ABORT is being written."""
    run = prepared(Order(shadow_s=10.0))
    run.tried("a", stage=1, evidence=FAILING, at=1.0)
    return run


PHASES: dict[Callable[[], Run], str] = {
    fetching: "fetch",
    judging: "judge",
    claiming: "claim",
    preparing: "prepare",
    holding: "hold",
    shadowing: "trial",
    holding_for_the_canary: "hold",
    on_canary: "trial",
    between_steps: "prepare",
    holding_for_the_second_step: "hold",
    aborting: "abort",
}


def finish(run: Run) -> list[Effect]:
    """Let the claim and the decision under way be written; return what the machine wanted meanwhile."""
    wanted: list[Effect] = []
    if run.state.phase == "claim" and run.state.attempt is not None:
        wanted += run.feed(Claimed(run.state.attempt, "won"))
    if run.state.attempt is not None:
        assert run.state.phase == "abort"
        wanted += run.feed(Decided(run.state.attempt.generation, "ABORT"))
    wanted += run.feed(Tick(), at=run.now + 100.0)
    return wanted


@pytest.mark.parametrize("arrive", PHASES)
def test_a_rollback_gives_up_what_is_not_committed_in_any_phase(arrive: Callable[[], Run]) -> None:
    """What serves goes on serving, the alias goes back to it, and no poll brings back what was given up."""
    run = arrive()
    assert run.state.phase == PHASES[arrive]
    assert rollback.ways(run.state) == (TWO, ONE)
    effects = run.feed(RollbackAsked("r"))
    assert effects[:2] == (SavePin(HERE), MoveAlias(HERE))
    aborted = Decide(5, "ABORT") in effects
    assert aborted == (PHASES[arrive] in ("prepare", "trial", "hold"))
    wanted = finish(run)
    assert (run.state.phase, run.state.committed, run.state.target) == ("idle", SERVING, None)
    assert not any(isinstance(effect, Fetch | Claim) or effect == Decide(5, "COMMIT") for effect in wanted)
    assert run.feed(wants(TWO)) == (MoveAlias(HERE),)
    assert run.feed(wants(HERE.target)) == (SavePin(None),)
    assert run.feed(wants(TWO), at=9000.0) == (), "the very same promotion does not come back"
    assert run.feed(wants(replace(TWO, promotion="p9"))) == (Fetch(replace(TWO, promotion="p9")),)


@pytest.mark.parametrize("arrive", [holding, holding_for_the_canary, holding_for_the_second_step])
def test_replicas_that_hold_are_released_once_the_abort_stands(arrive: Callable[[], Run]) -> None:
    """Those that hold wait for the decision, so that no client meets both versions; the others drop it at once."""
    run = arrive()
    run.feed(RollbackAsked("r"))
    assert answers.directive_for(run.state, "a", run.now) is None
    other = answers.directive_for(run.state, "b", run.now)
    assert other is not None
    assert (other.kind, other.keep) == ("stay", None)
    run.feed(Decided(5, "ABORT"))
    told = answers.directive_for(run.state, "a", run.now)
    assert told is not None
    assert (told.kind, told.generation) == ("release", 5)


@pytest.mark.parametrize("arrive", PHASES)
def test_it_is_written_down_once(arrive: Callable[[], Run]) -> None:
    """As taken back, not as superseded by a promotion that nobody made; what failed first keeps its reason."""
    run = arrive()
    effects = [*run.feed(RollbackAsked("r")), *finish(run)]
    audits = [effect for effect in effects if isinstance(effect, Audit)]
    expected = [] if arrive is aborting else [Audit(TWO, "rejected", rollback.TAKEN_BACK)]
    assert audits == expected
    found = status(run.state, run.now)
    assert (found["state"], found["serving"], found["desired"]) == ("probation", "1", "1")


def test_a_rollback_while_the_commit_is_being_written_leads_back_to_what_serves() -> None:
    """Only the ledger knows whether it comes too late; if it does, what served is returned to."""
    run = holding()
    assert run.report("b", "holding", 2) == (Decide(5, "COMMIT"),)
    assert run.feed(RollbackAsked("r")) == (SavePin(HERE),)
    effects = run.feed(Decided(5, "COMMIT"))
    assert effects[-1] == Fetch(HERE.target)
    run.feed(Fetched(HERE.target))
    assert run.state.attempt == Attempt(6, 2, HERE.target, TWO, rollback=True)
    lost = holding()
    lost.report("b", "holding", 2)
    lost.feed(RollbackAsked("r"))
    lost.feed(Decided(5, "ABORT"))
    lost.feed(Tick(), at=1000.0)
    assert (lost.state.phase, lost.state.committed) == ("idle", SERVING)


@pytest.mark.parametrize(("failure", "to"), [(BUSY, ONE), (BLIND, ZERO)])
def test_what_waits_for_another_try_is_taken_back_and_what_was_refused_is_not(failure: Failure, to: Target) -> None:
    """The one would come back by itself; of the other nothing is left, so what serves is meant."""
    run = fetching()
    run.feed(FetchFailed(TWO, failure))
    assert run.state.phase == "idle"
    run.feed(RollbackAsked("r"))
    assert run.state.pin == Pin(replace(to, promotion="r"), ("p2", "2"))
    run.feed(Tick(), at=1000.0)
    assert run.state.target != TWO


def test_a_newer_promotion_that_waits_behind_a_hold_is_taken_back_with_it() -> None:
    """Version 3 was promoted while the fleet held for version 2: neither may come."""
    run = holding()
    run.feed(wants(THREE))
    assert run.state.phase == "hold"
    run.feed(RollbackAsked("r"))
    finish(run)
    assert {each.target for each in run.state.rejections} == {TWO, THREE}
    assert (run.state.phase, run.state.committed) == ("idle", SERVING)
    assert run.state.pin == Pin(replace(ONE, promotion="r"), ("p3", "3"))


def test_the_next_rollback_goes_one_version_further_even_without_the_registry() -> None:
    """The first left version 1 where it was; its alias has not followed, and whoever asks again means version 1."""
    run = preparing()
    run.feed(RollbackAsked("r"))
    assert rollback.standing(run.state) == HERE, "while it ends, one more is the same"
    finish(run)
    assert rollback.standing(run.state) is None
    assert rollback.ways(run.state) == (ONE, ZERO)
    run.feed(RollbackAsked("s"))
    assert run.state.target == replace(ZERO, promotion="s")
    further = Pin(replace(ZERO, promotion="s"), ("p2", "2"), replaces="r")
    assert rollback.standing(run.state) == further
    assert run.feed(RollbackAsked("t")) == (), "one that is under way is only repeated"
    followed = replace(further, over=("r", "1"), replaces="")
    assert run.feed(wants(HERE.target)) == (SavePin(followed),), "the alias was on its way to version 1 meanwhile"
    assert run.state.target == further.target
    assert decode_pin(encode_pin(further)) == further


def test_a_rollback_asked_again_before_it_has_begun_changes_nothing() -> None:
    """Version 2 is being aborted for good while version 1 is left, too: neither rollback undoes the other."""
    run = aborting()
    run.feed(Decided(5, "ABORT"))
    run.feed(RollbackAsked("r"))
    back = run.state.pin
    assert back == Pin(replace(ZERO, promotion="r"), ("p2", "2"))
    assert run.feed(RollbackAsked("s")) == ()
    assert run.state.pin == back


def test_with_nothing_before_what_is_tried_can_still_be_taken_back() -> None:
    """The first version ever serves; its successor's promotion is undone all the same."""
    run = Run("a", committed=Attempt(4, 1, ONE))
    run.prepare(TWO)
    run.feed(RollbackAsked("r"))
    finish(run)
    assert run.state.committed == Attempt(4, 1, ONE)
    assert rollback.ways(run.state) is None
    assert run.feed(RollbackAsked("s")) == ()


def watched(run: Run, since: Tally) -> tuple[Effect, ...]:
    """Let a member report what it has seen of the version that serves, which is bad, after 1000 good images before."""
    report = Report("a", 50, 4, "d1", watch=Evidence(since), watch_before=Evidence(Tally(1000)))
    return run.feed(Polled(report), at=run.now + 5.0)


def test_probation_goes_on_while_the_alias_is_on_its_way_back() -> None:
    """Version 2 was taken back and version 1 turns out bad: it goes, too, and version 2 does not follow it."""
    run = preparing()
    run.feed(wants(TWO), at=1.0)
    run.feed(RollbackAsked("r"))
    run.feed(Decided(5, "ABORT"))
    effects = watched(run, Tally(100, errors=60))
    back = Pin(replace(ZERO, promotion="probation-4"), ("p2", "2"), replaces="r")
    assert SavePin(back) in effects
    assert run.state.target == back.target


def test_a_rollback_during_one_that_gives_way_to_a_promotion_keeps_that_from_coming() -> None:
    """Probation leads back and version 3 would follow: somebody who asks for a rollback does not want it."""
    run = Run("a", timing=TIMING)
    run.feed(wants(THREE))
    watched(run, Tally(100, errors=60))
    passing = Pin(replace(ZERO, promotion="probation-4"), ("p3", "3"), passing=True)
    assert run.state.pin == passing
    stays = replace(passing, passing=False)
    assert run.feed(RollbackAsked("r")) == (SavePin(stays),)
    (claim,) = run.feed(Fetched(stays.target))
    assert isinstance(claim, Claim)
    run.feed(Claimed(claim.attempt, "won"))
    run.report("a", "prepared", 60)
    run.report("a", "holding", 61)
    assert MoveAlias(stays) in run.feed(Decided(claim.attempt.generation, "COMMIT"))
    assert run.state.phase == "idle"
