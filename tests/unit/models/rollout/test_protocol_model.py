"""The promises of the protocol, checked over random interleavings, losses, deaths, restarts and promotions."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rollout.fake_fleet import FLAWS, PLACES, STRICT_FLAWS, FakeFleet, FakeReplica, ViolationError
from models.rollout.order import PLAIN, Order

STEPS = 1500


def _run(
    seed: int, flaws: frozenset[str] = frozenset(), steps: int = STEPS, *, strict: bool = False
) -> tuple[FakeFleet, bool]:
    """Run one world to its end; return it, and whether it converged once all faults had ended."""
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    fleet = FakeFleet(chance.randrange, flaws=flaws, replicas=1 + seed % 4, strict=strict)
    for _ in range(steps):
        fleet.step()
    return fleet, fleet.settle()


@settings(max_examples=150)
@given(seed=st.integers(0, 2**64 - 1), replicas=st.integers(1, 4), steps=st.integers(1, STEPS))
def test_every_promise_holds_in_every_world(seed: int, replicas: int, steps: int) -> None:
    """I2, I3, I4, I6 and I7 hold after every single event, and I5 once the faults end; trials and probation included.

    Nor is a promotion ever committed that a rollback took back, in whatever phase that was asked for.

    A seed stands for the whole schedule: a schedule drawn number by number shrinks better and gets nowhere near a
    commit, because most of its numbers are small.
    """
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    fleet = FakeFleet(chance.randrange, replicas=replicas)
    for _ in range(steps):
        fleet.step()
    assert fleet.settle(), "I5: the fleet does not converge"


@settings(max_examples=100)
@given(tape=st.lists(st.integers(0, 2**16), max_size=400), replicas=st.integers(1, 4))
def test_every_promise_holds_in_small_worlds_that_shrink(tape: list[int], replicas: int) -> None:
    """The same with a schedule that hypothesis can shrink, started from a fleet that serves."""
    fleet = FakeFleet(lambda n: n - 1, replicas=replicas)
    assert fleet.settle()
    choices = iter(tape)
    fleet.choose = lambda n: next(choices, 0) % n
    fleet.faults = 3
    for _ in tape:
        fleet.step()
    assert fleet.settle(), "I5: the fleet does not converge"


@settings(max_examples=100)
@given(seed=st.integers(0, 2**64 - 1), replicas=st.integers(1, 4), steps=st.integers(1, STEPS))
def test_in_strict_mode_every_promise_holds_where_hosts_are_cut_off(seed: int, replicas: int, steps: int) -> None:
    """I7 over all clients, those of a host that is cut off and counted dead included, whoever commits meanwhile."""
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    fleet = FakeFleet(chance.randrange, replicas=replicas, strict=True)
    for _ in range(steps):
        fleet.step()
    assert fleet.settle(), "I5: the fleet does not converge"


def test_strict_worlds_reach_the_rare_cases() -> None:
    """Hosts are cut off for long enough to refuse, are counted dead, and come back to find themselves struck off."""
    wanted = {
        "cut off",
        "counted dead",
        "cut off too long",
        "struck off",
        "commit without one that is cut off",
        "crash between COMMIT and GO",
        "deposed",
    }
    seen: Counter[str] = Counter()
    for seed in range(120):
        fleet, converged = _run(seed, strict=True)
        assert converged
        seen += fleet.events
        if wanted <= seen.keys():
            return
    assert wanted <= seen.keys()


def test_the_worlds_reach_the_rare_cases() -> None:
    """A checker that never meets a doubt, a crash after COMMIT or a deposed actor would prove nothing."""
    wanted = {
        "commit",
        "doubt ended by COMMIT",
        "doubt ended by ABORT",
        "aborted in hold",
        "crash in hold",
        "crash in commit",
        "crash between COMMIT and GO",
        "crash in bootstrap",
        "rejected in golden",
        "superseded in prepare",
        "superseded in trial",
        "rejected in quality",
        "rejected in shadow",
        "rejected in canary",
        "shadow",
        "canary",
        "crash in trial",
        "rolled back in probation",
        "proven",
        *(
            f"rollback in {phase}"
            for phase in ("fetch", "judge", "claim", "prepare", "trial", "hold", "abort", "commit")
        ),
        "rollback in canary hold",
        "deposed",
        "split",
        "lost",
    }
    seen: Counter[str] = Counter()
    for seed in range(120):
        fleet, converged = _run(seed)
        assert converged
        seen += fleet.events
        if wanted <= seen.keys():
            return
    assert wanted <= seen.keys()


SCRIPTED = ("no_death_margin", "members_from_polls")
"""Flaws that chance meets too seldom for a quick test; each has its own story below."""


WITNESS = {"no_fence": 313}
"""The first world that breaks a promise without a rule, where 600 take seconds to try; only where to begin to look."""


@pytest.mark.parametrize("flaw", [flaw for flaw in FLAWS if flaw not in SCRIPTED])
def test_the_checker_notices_a_broken_rule(flaw: str) -> None:
    """Without any one rule of the protocol, some world breaks a promise: the checks are able to fail."""
    first = WITNESS.get(flaw, 0)
    for seed in (*range(first, 600), *range(first)):
        try:
            _, converged = _run(seed, frozenset({flaw}))
        except ViolationError:
            return
        if not converged:
            return
    pytest.fail(f"600 worlds without a violation although the protocol had {flaw}")


def _serving_fleet(flaws: frozenset[str] = frozenset(), *, strict: bool = False) -> FakeFleet:
    fleet = FakeFleet(lambda n: n - 1, flaws=flaws, replicas=2, strict=strict)
    assert fleet.settle()
    return fleet


def _promote_while_one_dies(fleet: FakeFleet) -> FakeReplica:
    """Take one replica's name away while its process, cut off, still answers for 0.9 s; promote meanwhile."""
    dying = next(iter(fleet.replicas.values()))
    fleet.mail.clear()
    assert fleet.actor is not None
    fleet.actor.polls.clear()
    dying.listed, dying.gone_at = False, fleet.now + 0.9
    fleet.prove_deaths()
    fleet.promote(2)
    fleet.go_on(30, silent=dying)
    return dying


def _promote_while_one_is_cut_off_from_a_new_actor(fleet: FakeFleet) -> None:
    """The actor dies; its next life hears from one of the two replicas only, and somebody promotes."""
    silent = next(iter(fleet.replicas.values()))
    fleet.crash_actor()
    fleet.mail.clear()
    fleet.start_actor()
    fleet.promote(2)
    fleet.go_on(100, silent=silent)


def test_a_new_actor_waits_for_members_it_has_not_heard_of() -> None:
    """The member set is in the ledger: a silent member keeps the fleet on the old generation, and in step."""
    fleet = _serving_fleet()
    _promote_while_one_is_cut_off_from_a_new_actor(fleet)
    assert {replica.active for replica in fleet.replicas.values()} == {(1, "d1")}
    assert fleet.settle()
    assert {digest for _, digest in (r.active for r in fleet.replicas.values() if r.active)} == {"d2"}


def test_with_members_known_from_polls_only_a_silent_one_is_left_behind() -> None:
    """The control of the test above."""
    fleet = _serving_fleet(frozenset({"members_from_polls"}))
    with pytest.raises(ViolationError, match="I7"):
        _promote_while_one_is_cut_off_from_a_new_actor(fleet)


def test_a_dying_process_that_still_answers_is_waited_for() -> None:
    """The death margin outlasts a process whose name has gone: it never answers beside a newer generation."""
    fleet = _serving_fleet()
    _promote_while_one_dies(fleet)
    assert fleet.settle()
    assert {replica.active for replica in fleet.replicas.values()} == {(2, "d2")}


def test_without_the_death_margin_a_dying_process_breaks_the_promise() -> None:
    """The control of the test above: with no margin, the checker sees the old generation after the new one."""
    fleet = _serving_fleet(frozenset({"no_death_margin"}))
    with pytest.raises(ViolationError, match="I7"):
        _promote_while_one_dies(fleet)


def _promote_while_one_is_cut_off(fleet: FakeFleet) -> tuple[FakeReplica, FakeReplica]:
    """Cut one host off, count it dead at once, promote; return the replica there and the other one."""
    far, near = fleet.replicas.values()
    fleet.cut_off(far)
    fleet.count_dead(far)
    fleet.promote(2)
    fleet.go_on(100)
    return far, near


def _promote_while_one_is_struck_off_and_the_actor_dies(fleet: FakeFleet) -> FakeReplica:
    """Cut one host off; its replica is struck off, then the next life of the actor, which never knew it, promotes."""
    far, near = fleet.replicas.values()
    fleet.cut_off(far)
    fleet.count_dead(far)
    fleet.go_on(5)
    fleet.crash_actor()
    fleet.start_actor()
    fleet.promote(2)
    fleet.go_on(100)
    return near


STORIES = {
    "no_isolation_wait": _promote_while_one_is_cut_off,
    "answers_when_cut_off": _promote_while_one_is_cut_off,
    "hasty_new_life": _promote_while_one_is_struck_off_and_the_actor_dies,
}


@pytest.mark.parametrize("flaw", STRICT_FLAWS)
def test_without_any_one_rule_of_strict_mode_an_old_answer_follows_a_new_one(flaw: str) -> None:
    """The control of the tests below: the actor's wait, a new life's, and the refusal of the replica."""
    with pytest.raises(ViolationError, match="I7"):
        STORIES[flaw](_serving_fleet(frozenset({flaw}), strict=True))


def test_in_strict_mode_a_new_life_waits_for_those_that_the_one_before_had_struck_off() -> None:
    """They are not in the ledger, so it waits for whomever there may be; then it commits."""
    fleet = _serving_fleet(strict=True)
    assert _promote_while_one_is_struck_off_and_the_actor_dies(fleet).active == (2, "d2")


def test_in_strict_mode_the_others_commit_once_one_that_is_cut_off_answers_nothing() -> None:
    """It refuses, they go on; back, and struck off, it answers nothing old before it has joined again."""
    fleet = _serving_fleet(strict=True)
    far, near = _promote_while_one_is_cut_off(fleet)
    assert (far.active, far.may_start, far.failing) == ((1, "d1"), False, True)
    assert near.active == (2, "d2")
    fleet.join_again(far)
    fleet.go_on(2)
    assert (far.state and far.state.outside, far.may_start) == (True, False)
    assert fleet.settle()


def test_in_strict_mode_a_cut_that_nobody_counts_as_a_death_ends_as_it_began() -> None:
    """It refuses while it cannot know; the ledger's first word lets it answer again, and the rollout goes on."""
    fleet = _serving_fleet(strict=True)
    far = next(iter(fleet.replicas.values()))
    fleet.cut_off(far)
    fleet.go_on(60)
    assert far.failing
    fleet.join_again(far)
    fleet.go_on(6)
    assert (far.active, far.may_start) == ((1, "d1"), True)
    assert fleet.events["rejoin"] == 0


def test_in_strict_mode_losing_the_actor_alone_stops_nobody() -> None:
    """Static stability: the ledger's word is enough."""
    fleet = _serving_fleet(strict=True)
    fleet.crash_actor()
    for _ in range(200):
        for replica in fleet.replicas.values():
            replica.confirm()
        fleet.advance(0.05)
        assert all(replica.may_start for replica in fleet.replicas.values())


def test_in_strict_mode_a_dead_replica_delays_a_promotion_and_no_more() -> None:
    """Its process may live somewhere, so it is waited for; then the rest commit."""
    fleet = _serving_fleet(strict=True)
    dead, near = fleet.replicas.values()
    del fleet.replicas[dead.name]
    died = fleet.now
    fleet.promote(2)
    while near.active != (2, "d2"):
        fleet.go_on(1)
    assert fleet.timing.burial_s <= fleet.now - died < fleet.timing.burial_s + 1.0


def test_a_first_version_that_kills_its_replicas_is_refused_and_a_promotion_begins_anew() -> None:
    """Three that vanish while they load it end the attempt, whatever else is under way; the fleet stays usable."""
    fleet = FakeFleet(lambda n: n - 1, replicas=3)
    while len(fleet.actor.state.trying if fleet.actor else ()) < 3:
        fleet.step_bootstrap()
    fleet.replicas.clear()
    fleet.prove_deaths()
    fleet.go_on(5)
    assert fleet.events["rejected in load"] == 1
    assert fleet.converged()
    fleet.promote(2)
    fleet.start_replica()
    assert fleet.settle()
    assert {replica.active for replica in fleet.replicas.values()} == {(2, "d2")}


def test_a_first_attempt_that_hangs_is_given_up_and_tried_again() -> None:
    """Replicas that neither load it nor die: nobody waits for them longer than a load may take."""
    fleet = FakeFleet(lambda n: n - 1, replicas=2)
    while len(fleet.actor.state.trying if fleet.actor else ()) < 2:
        fleet.step_bootstrap()
    for replica in fleet.replicas.values():
        fleet.pause(replica)
    fleet.advance(fleet.timing.prepare_timeout_s + 0.1)
    assert fleet.events["rejected in load"] == 1
    assert fleet.settle()
    assert {digest for _, digest in (r.active for r in fleet.replicas.values() if r.active)} == {"d1"}


def _on_canary(fleet: FakeFleet) -> None:
    """Promote a good version and let its canary answer clients on every replica."""
    fleet.promote(2, Order(canary=(0.4,), step_s=5.0))
    for _ in range(100):
        fleet.go_on(1)
        if all(replica.trial for replica in fleet.replicas.values()):
            return
    pytest.fail("the canary did not begin")


def test_a_canary_answers_its_clients_and_nobody_else_until_the_commit() -> None:
    """Those below its share see its generation on every replica, all others the old one; then all see the new one."""
    fleet = _serving_fleet()
    _on_canary(fleet)
    for replica in fleet.replicas.values():
        assert [replica.answers(place) for place in PLACES] == [2, 2, 1]
    assert fleet.settle()
    assert {replica.active for replica in fleet.replicas.values()} == {(2, "d2")}


def test_a_promotion_during_a_canary_ends_it_everywhere() -> None:
    """Its clients go back, and on to what was promoted."""
    fleet = _serving_fleet()
    _on_canary(fleet)
    fleet.promote(1)
    fleet.go_on(10)
    assert not any(replica.trial for replica in fleet.replicas.values())
    assert fleet.events["superseded in trial"] == 1
    assert {replica.active for replica in fleet.replicas.values()} == {(1, "d1")}


def test_a_new_actor_aborts_the_canary_of_the_one_before_and_begins_anew() -> None:
    """What it cannot know it does not finish; the version gets its full trial."""
    fleet = _serving_fleet()
    _on_canary(fleet)
    fleet.crash_actor()
    fleet.start_actor()
    assert fleet.settle()
    assert fleet.events["canary begun"] == 4
    assert {digest for _, digest in (r.active for r in fleet.replicas.values() if r.active)} == {"d2"}


def test_a_replica_that_starts_during_a_canary_serves_at_once_and_follows() -> None:
    """It answers with the committed version, then runs the canary, too, and flips with the others."""
    fleet = _serving_fleet()
    _on_canary(fleet)
    fleet.start_replica()
    fleet.go_on(20)
    assert {replica.answers(PLACES[0]) for replica in fleet.replicas.values()} == {2}
    assert fleet.settle()
    assert {replica.active for replica in fleet.replicas.values()} == {(2, "d2")}


def test_a_version_that_fails_on_live_images_is_taken_back_within_a_second() -> None:
    """No trial was asked for, so it serves; its errors bring the one before back, and the alias follows."""
    fleet = _serving_fleet()
    fleet.promote(4)
    while {replica.active for replica in fleet.replicas.values()} != {(2, "d4")}:
        fleet.go_on(1)
    begun = fleet.now
    while {replica.active for replica in fleet.replicas.values()} != {(3, "d1")}:
        fleet.go_on(1)
    assert fleet.now - begun < 1.0
    fleet.go_on(200)
    assert (fleet.alias.version, fleet.alias.promotion) == ("1", "probation-2")
    assert fleet.converged()


PHASES = ("fetch", "judge", "claim", "prepare", "hold", "commit")
TRIED = Order(shadow_s=0.2, canary=(0.1, 0.4), step_s=0.3)


@pytest.mark.parametrize(
    ("order", "phases"), [(PLAIN, PHASES), (TRIED, (*PHASES, "trial", "canary hold"))], ids=["plain", "tried"]
)
def test_a_rollback_at_any_moment_of_a_promotion_leads_to_what_served_before_it(
    order: Order, phases: tuple[str, ...]
) -> None:
    """However far the promotion has come, committed or not; nobody has to know it in order to ask."""
    seen: Counter[str] = Counter()
    for turns in range(0, 1000, 2 if order.canary else 1):
        fleet = _serving_fleet()
        fleet.promote(2)
        assert fleet.settle()
        commits = len(fleet.commits)
        fleet.promote(1, order)
        for _ in range(turns):
            fleet.step_in_turn()
        assert fleet.actor is not None
        fleet.actor.read_alias()
        late = len(fleet.commits) > commits
        fleet.rollback()
        assert fleet.settle()
        fleet.go_on(5)
        assert {digest for _, digest in (r.active for r in fleet.replicas.values() if r.active)} == {"d2"}
        assert fleet.alias.digest == "d2"
        seen += fleet.events
        if late:
            break
    assert {f"rollback in {phase}" for phase in phases} <= seen.keys()
