"""A replica's transitions: it obeys decisions, asks when in doubt, and never decides alone."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rollout import member
from models.rollout.member import (
    Ask,
    BeginTrial,
    Cancel,
    Directed,
    Discard,
    EndTrial,
    FailAll,
    Flip,
    Hold,
    Joined,
    LedgerSilent,
    MemberState,
    Prepare,
    Prepared,
    PrepareFailed,
    Rejoin,
    Resume,
    Ruled,
    Tick,
    TrialBegun,
    TrialFailed,
)
from models.rollout.messages import Attempt, Directive, Failure, Target
from models.rollout.trial import TrialStep

TWO = Attempt(5, 2, Target("2", "d2", "p2"))
THREE = Attempt(6, 2, Target("3", "d3", "p3"))
START = MemberState("r", generation=4, digest="d1", incarnation=2)


def _feed(state: MemberState, *events: member.Event, at: float = 0.0) -> tuple[MemberState, list[member.Effect]]:
    effects: list[member.Effect] = []
    for event in events:
        state, more = member.step(state, event, at)
        effects += more
    return state, effects


def _told(kind: str, attempt: Attempt | None = None, *, incarnation: int = 2, **more: object) -> Directed:
    return Directed(Directive(kind, incarnation, attempt, **more))  # type: ignore[arg-type]


def _holding() -> MemberState:
    return _feed(START, _told("prepare", TWO), Prepared(TWO), _told("hold", TWO))[0]


def test_a_rollout_as_it_should_be() -> None:
    """Prepare, hold, go: the flip and the resumption come together, and the report says so."""
    state, effects = _feed(START, _told("prepare", TWO), Prepared(TWO), _told("hold", TWO), _told("go", TWO))
    assert effects == [Prepare(TWO), Hold(), Flip("d2", 5), Resume()]
    state, report = member.report(state)
    assert (report.generation, report.digest, report.phase, report.attempt, report.seq) == (5, "d2", "idle", None, 1)
    assert pickle.loads(pickle.dumps(report)) == report  # noqa: S301 - its own bytes


def test_an_abort_resumes_and_keeps_the_candidate() -> None:
    """The next attempt at the same version finds it loaded."""
    state, effects = _feed(_holding(), _told("release", generation=5))
    assert effects == [Resume()]
    assert (state.phase, state.candidate, state.generation) == ("idle", "d2", 4)


@pytest.mark.parametrize(("verdict", "effects"), [("COMMIT", [Flip("d2", 5), Resume()]), ("ABORT", [Resume()])])
def test_in_doubt_it_asks_once_and_obeys_what_stands(verdict: str, effects: list[member.Effect]) -> None:
    """The deadline passes: it puts ABORT and does what the ledger says, not what it would like."""
    state, nothing = _feed(_holding(), Tick(), at=0.49)
    assert nothing == []
    state, asked = _feed(state, Tick(), Tick(), at=0.5)
    assert asked == [Ask(5)]
    assert _feed(state, Ruled(5, verdict), at=0.6)[1] == effects  # type: ignore[arg-type]


def test_without_a_ledger_it_holds_on_then_refuses_requests_and_never_answers_old() -> None:
    """Unreachable for longer than the limit: 503 instead of old answers; both end with the decision."""
    state, effects = _feed(_holding(), Tick(), LedgerSilent(5), Tick(), at=0.5)
    assert effects == [Ask(5), Ask(5)]
    state, effects = _feed(state, LedgerSilent(5), at=5.4)
    assert effects == []
    state, effects = _feed(state, Tick(), at=5.5)
    assert effects == [FailAll(member.IN_DOUBT), Ask(5)]
    assert state.failing
    state, effects = _feed(state, LedgerSilent(5), Tick(), at=60.0)
    assert effects == [Ask(5)]
    state, effects = _feed(state, Ruled(5, "COMMIT"), at=61.0)
    assert effects == [Flip("d2", 5), Resume(), FailAll(None)]
    assert not state.failing


def test_go_from_the_actor_ends_a_doubt_too() -> None:
    """Whoever knows the decision first may tell; the ledger's answer after that changes nothing."""
    state, effects = _feed(_holding(), Tick(), at=1.0)
    state, effects = _feed(state, _told("go", TWO, incarnation=3), Ruled(5, "COMMIT"), at=1.1)
    assert effects == [Flip("d2", 5), Resume()]


@pytest.mark.parametrize(
    "event",
    [
        _told("hold", TWO),
        _told("prepare", TWO),
        _told("go", TWO),
        _told("release", generation=5),
        _told("prepare", Attempt(4, 2, Target("1", "d1", "p1"))),
        Ruled(5, "ABORT"),
        PrepareFailed(TWO, Failure("load", "late", permanent=False)),
        LedgerSilent(5),
    ],
)
def test_what_comes_late_or_twice_changes_nothing(event: member.Event) -> None:
    """After the flip, everything about that generation or an older one is ignored."""
    done, _ = _feed(_holding(), _told("go", TWO))
    after, effects = _feed(done, event)
    assert effects == []
    assert replace(after, incarnation=0) == replace(done, incarnation=0)


def test_hold_without_having_prepared_this_very_attempt_is_ignored() -> None:
    """Neither an unprepared replica nor one that prepared under another life holds."""
    assert _feed(START, _told("hold", TWO))[1] == []
    prepared, _ = _feed(START, _told("prepare", TWO), Prepared(TWO))
    assert _feed(prepared, _told("hold", Attempt(5, 3, TWO.target)))[1] == []


def test_an_earlier_life_of_the_actor_is_ignored() -> None:
    """Once a newer incarnation has spoken, the older one has no say."""
    state, _ = _feed(START, _told("stay", incarnation=7))
    assert _feed(state, _told("prepare", TWO))[1] == []


def test_a_newer_attempt_replaces_the_one_under_way() -> None:
    """Superseded while loading: the work is cancelled; superseded when loaded: the candidate goes."""
    assert _feed(START, _told("prepare", TWO), _told("prepare", THREE))[1] == [Prepare(TWO), Cancel(), Prepare(THREE)]
    _, effects = _feed(START, _told("prepare", TWO), Prepared(TWO), _told("prepare", THREE))
    assert effects == [Prepare(TWO), Discard("d2"), Prepare(THREE)]


def test_a_load_that_ended_as_it_was_given_up_is_freed() -> None:
    """Cancelling comes too late at times: what nobody wants any more must not stay in memory."""
    given_up, _ = _feed(START, _told("prepare", TWO), _told("stay"))
    assert _feed(given_up, Prepared(TWO))[1] == [Discard("d2")]
    replaced, _ = _feed(START, _told("prepare", TWO), _told("prepare", THREE))
    assert _feed(replaced, Prepared(TWO))[1] == [Discard("d2")]
    again, _ = _feed(START, _told("prepare", TWO), _told("prepare", replace(TWO, generation=6)))
    assert _feed(again, Prepared(TWO)) == (replace(again, candidate="d2"), [])
    done, _ = _feed(_holding(), _told("go", TWO))
    assert _feed(done, Prepared(TWO)) == (done, [])


def test_stay_drops_what_is_not_to_be_kept() -> None:
    """A rejected candidate is freed, a wanted one stays loaded, a hold is never ended by it."""
    prepared, _ = _feed(START, _told("prepare", TWO), Prepared(TWO))
    assert _feed(prepared, _told("stay"))[1] == [Discard("d2")]
    assert _feed(prepared, _told("stay", keep="d2"))[1] == []
    assert _feed(_holding(), _told("stay"))[1] == []


def test_a_failed_preparation_is_reported_and_can_be_followed_by_another() -> None:
    """The failure travels with the report until a newer attempt comes."""
    failure = Failure("golden", "it is blind", permanent=True)
    state, _ = _feed(START, _told("prepare", TWO), PrepareFailed(TWO, failure))
    assert member.report(state)[1].failure == failure
    state, effects = _feed(state, _told("prepare", THREE))
    assert effects == [Prepare(THREE)]
    assert member.report(state)[1].failure is None


def test_one_that_is_no_member_any_more_starts_no_batch_until_it_is_admitted_again() -> None:
    """Others may commit without it: it holds, loads what is committed, and refuses requests if that takes long."""
    state, effects = _feed(START, _told("rejoin"))
    assert effects == [Hold(), Rejoin()]
    assert _feed(state, _told("prepare", TWO))[1] == []
    state, effects = _feed(state, Tick(), at=5.0)
    assert effects == [FailAll(member.IN_DOUBT)]
    state, effects = _feed(state, Joined(9, "d9"), at=6.0)
    assert effects == [Resume(), FailAll(None)]
    assert (state.generation, state.digest, state.outside, state.failing) == (9, "d9", False, False)


def test_lost_and_not_held_it_serves_on() -> None:
    """Nobody can commit without its acknowledgement, so an hour without the actor changes nothing."""
    prepared, _ = _feed(START, _told("prepare", TWO), Prepared(TWO))
    for state in (START, prepared):
        assert _feed(state, Tick(), at=3600.0) == (state, [])


_ATTEMPTS = st.builds(
    Attempt,
    st.integers(1, 8),
    st.integers(1, 3),
    st.builds(Target, st.just("v"), st.sampled_from(["d2", "d3"]), st.just("p")),
)
_EVENTS = st.one_of(
    st.builds(
        Directed,
        st.builds(
            Directive,
            st.sampled_from(["stay", "prepare", "hold", "go", "release"]),
            st.integers(1, 3),
            _ATTEMPTS,
            st.integers(1, 8),
        ),
    ),
    st.builds(Prepared, _ATTEMPTS),
    st.builds(Ruled, st.integers(1, 8), st.sampled_from(["COMMIT", "ABORT"])),
    st.builds(LedgerSilent, st.integers(1, 8)),
    st.just(Tick()),
)


@given(st.lists(st.tuples(_EVENTS, st.floats(0.0, 2.0)), max_size=60))
def test_whatever_arrives_the_generation_never_falls_and_batches_start_only_when_not_held(
    events: list[tuple[member.Event, float]],
) -> None:
    """Any sequence of events: flips go upward only, to a prepared digest, and every hold ends in flip or resume."""
    state, now, held, loaded = START, 0.0, False, {"d1"}
    for event, wait in events:
        now += wait
        before = state
        state, effects = member.step(state, event, now)
        if before.phase != "prepared" and state.phase == "prepared":
            loaded.add(state.candidate or "")
        for effect in effects:
            held = True if isinstance(effect, Hold) else False if isinstance(effect, Resume) else held
            if isinstance(effect, Flip):
                assert effect.generation > before.generation
                assert effect.digest in loaded
        assert held == (state.phase == "holding")
        assert state.generation >= before.generation


def test_a_load_that_ends_after_it_was_given_up_counts_for_the_next_attempt_at_the_same_content() -> None:
    """Loaded it is: giving the next attempt up, too, must not leave it in memory unknown to the machine."""
    again = replace(TWO, generation=6)
    state, effects = _feed(START, _told("prepare", TWO), _told("prepare", again), Prepared(TWO))
    assert (state.phase, state.candidate) == ("preparing", "d2")
    assert effects == [Prepare(TWO), Cancel(), Prepare(again)]
    assert _feed(state, _told("stay"))[1] == [Cancel(), Discard("d2")]


# Trials

SHADOW, CANARY = TrialStep(1, "shadow", 0.1, 60.0, 0.1), TrialStep(2, "canary", 0.05, 60.0, 0.1)
PREPARED = _feed(START, _told("prepare", TWO), Prepared(TWO))[0]
TRYING = _feed(PREPARED, _told("trial", TWO, step=SHADOW), TrialBegun(TWO, 1))[0]
UNTRIABLE = Failure("canary", "it names its classes otherwise", permanent=True)


def test_a_trial_begins_once_for_each_step_and_is_reported() -> None:
    """Repeating the directive changes nothing; an older step is an old story."""
    state, effects = _feed(PREPARED, _told("trial", TWO, step=SHADOW), TrialBegun(TWO, 1))
    assert effects == [BeginTrial(TWO, SHADOW)]
    assert _feed(state, _told("trial", TWO, step=SHADOW))[1] == []
    assert member.report(state)[1].trial == 1
    later = _feed(state, _told("trial", TWO, step=CANARY), TrialBegun(TWO, 2))[0]
    assert _feed(later, _told("trial", TWO, step=SHADOW)) == (later, [])


def test_a_canary_begins_in_a_hold_and_ends_it() -> None:
    """Told to run the step, it begins it and only then starts batches again."""
    state, effects = _feed(TRYING, _told("hold", TWO, stage=1), _told("trial", TWO, step=CANARY), TrialBegun(TWO, 2))
    assert effects == [Hold(), BeginTrial(TWO, CANARY), Resume()]
    assert (state.phase, state.trial) == ("prepared", 2)


def test_a_hold_asked_out_of_another_step_is_an_old_story() -> None:
    """A late copy of the directive that began the canary must not stop the replica once more."""
    assert _feed(TRYING, _told("hold", TWO, stage=0)) == (TRYING, [])
    assert _feed(TRYING, _told("hold", TWO, stage=1))[0].phase == "holding"


def test_past_the_deadline_only_the_ledger_tells_whether_the_canary_begins() -> None:
    """It has put ABORT, or is about to: whoever begins now would run what can never be committed."""
    held = _feed(TRYING, _told("hold", TWO, stage=1))[0]
    assert _feed(held, _told("trial", TWO, step=CANARY), at=0.5) == (held, [])
    asking = _feed(held, Tick(), at=0.5)[0]
    begun, effects = _feed(asking, TrialBegun(TWO, 2), at=0.51)
    assert (begun.phase, effects) == ("holding", [])
    state, effects = _feed(begun, Ruled(5, "ABORT"), at=0.6)
    assert effects == [EndTrial(), Resume()]
    assert (state.phase, state.trial, state.settled, state.candidate) == ("idle", 0, 5, "d2")


def test_a_canary_that_cannot_begin_is_answered_by_nobody_until_it_is_off() -> None:
    """Held, it says why and puts ABORT at once: elsewhere the candidate may answer already."""
    held = _feed(TRYING, _told("hold", TWO, stage=1))[0]
    state, effects = _feed(held, _told("trial", TWO, step=CANARY), TrialFailed(TWO, UNTRIABLE), Tick(), at=0.1)
    assert effects == [BeginTrial(TWO, CANARY), Ask(5)]
    assert (member.report(state)[1].failure, state.phase) == (UNTRIABLE, "holding")


def test_a_shadow_that_cannot_begin_is_reported() -> None:
    """As a preparation that fails."""
    state, effects = _feed(PREPARED, _told("trial", TWO, step=SHADOW), TrialFailed(TWO, UNTRIABLE))
    assert effects == [BeginTrial(TWO, SHADOW), EndTrial()]
    assert (state.phase, state.failure) == ("failed", UNTRIABLE)


@pytest.mark.parametrize(
    ("event", "effects"),
    [
        (_told("stay", keep="d2"), [EndTrial()]),
        (_told("stay"), [EndTrial(), Discard("d2")]),
        (_told("prepare", THREE), [EndTrial(), Discard("d2"), Prepare(THREE)]),
        (_told("go", TWO), [Flip("d2", 5), Resume()]),
        (_told("rejoin"), [Hold(), EndTrial(), Discard("d2"), Rejoin()]),
    ],
)
def test_every_way_out_of_an_attempt_ends_its_trial(event: Directed, effects: list[member.Effect]) -> None:
    """Superseded, dropped, committed (the flip ends it) or fallen out: no trial outlives its attempt."""
    state, found = _feed(TRYING, event)
    assert found == effects
    assert state.trial == 0


def test_a_trial_that_begins_after_its_attempt_is_ended() -> None:
    """The word that it runs comes after the word that nobody wants it."""
    state = _feed(PREPARED, _told("trial", TWO, step=SHADOW), _told("stay", keep="d2"))[0]
    assert _feed(state, TrialBegun(TWO, 1)) == (state, [EndTrial()])
    assert _feed(state, TrialFailed(TWO, UNTRIABLE)) == (state, [])


def test_the_pace_of_a_candidate_is_reported_until_the_attempt_ends() -> None:
    """Measured while it was prepared."""
    state = _feed(START, _told("prepare", TWO), Prepared(TWO, (12.0, 10.0)))[0]
    assert member.report(state)[1].golden_ms == (12.0, 10.0)
    assert member.report(_feed(state, _told("stay"))[0])[1].golden_ms is None
