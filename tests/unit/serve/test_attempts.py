"""Which lines of the audit make a finished rollout, and what is told of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from models.rollout.gates import Verdict
from models.rollout.messages import Target
from serve.attempts import ENDS, PASSED, Attempts
from serve.audit import Entry

if TYPE_CHECKING:
    from models.weights.rollout_runs import RolloutRun

ONE, TWO = Target("1", "d1", "p1"), Target("2", "d2", "p2")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Story:
    """Attempts that are given lines a second apart."""

    def __init__(self) -> None:
        """Begin with version 1 serving."""
        numbers = count(1)
        self.attempts = Attempts(lambda: f"r{next(numbers)}")
        self.seconds = 0

    def line(
        self, result: str, after: Target = TWO, *, action: str = "roll", verdicts: tuple[Verdict, ...] = (), **rest: Any
    ) -> RolloutRun | None:
        """Give the next line; return what it ends."""
        fields: dict[str, Any] = {"who": "rollout", "generation": 0, "reason": "", "measured": {}, "before": ONE} | rest
        entry = Entry(
            START + timedelta(seconds=self.seconds), action=action, model="m", after=after, result=result, **fields
        )
        self.seconds += 1
        return self.attempts.take(entry, verdicts)


def test_a_rollout_through_every_step_is_one_run() -> None:
    """From, to, who and why; seconds a step; what gates and trials measured."""
    story = Story()
    assert story.line("desired") is None
    # The line of the promotion comes after the first step that it causes.
    assert story.line("accepted", action="promote", who="operator", reason="better on trays") is None
    for result, measured in (("fetched", {}), ("judged", {"x": 1.0}), ("prepared", {}), ("shadow", {"compared": 9.0}),
                             ("canary", {"compared": 1.0}), ("canary", {"compared": 2.0})):  # fmt: skip
        assert story.line(result, measured=measured) is None
    gates = (
        Verdict("quality", passed=True, reason="", measured={"candidate": 0.5}),
        Verdict("contract", passed=True, reason=""),
    )
    run = story.line("committed", generation=7, verdicts=gates)
    assert run is not None
    assert (run.ident, run.model, run.result, run.generation, run.tries) == ("r1", "m", "committed", 7, 1)
    assert (run.from_version, run.from_digest, run.version, run.digest) == ("1", "d1", "2", "d2")
    assert (run.who, run.asked) == ("operator", "better on trays")
    assert (run.begun, run.ended) == (START, START + timedelta(seconds=8))
    assert run.steps == {"fetch": 2.0, "judge": 1.0, "load": 1.0, "shadow": 1.0, "canary": 2.0, "hold": 1.0}
    assert run.measured == {
        "quality_passed": 1.0,
        "quality_candidate": 0.5,
        "contract_passed": 1.0,
        "shadow_compared": 9.0,
        "canary_compared": 2.0,
    }
    assert story.line("retired", ONE, before=TWO) is None
    assert story.line("proven") is None


def test_a_refusal_names_the_step_that_refused() -> None:
    """With the verdict behind it."""
    story = Story()
    story.line("desired")
    story.line("fetched")
    verdict = Verdict("quality", passed=False, reason="it sees worse", measured={"candidate": 0.25})
    run = story.line("rejected", reason="quality: it sees worse", verdicts=(verdict,))
    assert run is not None
    assert (run.result, run.reason, run.generation) == ("rejected", "quality: it sees worse", 0)
    assert run.steps == {"fetch": 1.0, "quality": 1.0}
    assert run.measured == {"quality_passed": 0.0, "quality_candidate": 0.25}


def test_the_first_release_of_a_service_is_loaded_and_never_held_for() -> None:
    """Nothing served before it."""
    story = Story()
    story.line("desired")
    story.line("fetched", before=None)
    run = story.line("committed", before=None, generation=1)
    assert run is not None
    assert (run.from_version, run.from_digest, run.who, run.asked) == ("", "", "rollout", "")
    assert run.steps == {"fetch": 1.0, "load": 1.0}


def test_a_store_that_is_away_for_a_day_brings_one_run() -> None:
    """The one that ends otherwise tells how often it was tried."""
    story = Story()
    story.line("desired")
    away = "fetch: the store is too slow; it is tried again later"
    runs = [story.line("rejected", reason=away) for _ in range(1000)]
    assert [run.tries for run in runs if run is not None] == [1]
    story.line("fetched")
    run = story.line("committed", generation=2)
    assert run is not None
    assert run.tries == 1001


def test_another_target_or_another_step_is_told_again() -> None:
    """Only what says nothing new is left out."""
    story = Story()
    assert story.line("aborted", reason="hold: only 1 of 2 replicas held in time") is not None
    assert story.line("aborted", reason="hold: only 0 of 2 replicas held in time") is None
    assert story.line("rejected", reason="load: 3 replicas died") is not None
    assert story.line("rejected", ONE, reason="load: 3 replicas died") is not None


def test_a_rollback_tells_who_wanted_it() -> None:
    """Its promotion id is made after its line: what it returns to is known by its content."""
    story = Story()
    back = Target("1", "d1", "somewhere else")
    story.line("accepted", ONE, action="rollback", before=TWO, who="operator")
    story.line("desired", back, before=TWO)
    run = story.line("committed", back, before=TWO, generation=3)
    assert run is not None
    assert (run.who, run.asked, run.from_version, run.version) == ("operator", "rollback", "2", "1")
    again = story.line("committed", Target("1", "d1", "p9"), before=TWO, generation=4)
    assert again is not None
    assert again.asked == "", "a wish is granted once"


def test_a_breach_on_probation_is_why_the_version_before_comes_back() -> None:
    """Nobody asked for it."""
    story = Story()
    story.line("rolled back", reason="probation: it fails more often")
    back = Target("1", "d1", "probation-2")
    story.line("desired", back, before=TWO)
    run = story.line("committed", back, before=TWO, generation=3)
    assert run is not None
    assert (run.who, run.asked) == ("rollout", "rolled back, probation: it fails more often")


def test_a_refused_promotion_is_no_wish() -> None:
    """The registry did not take it."""
    story = Story()
    story.line("refused", action="promote", who="operator", reason="try")
    run = story.line("committed", generation=3)
    assert run is not None
    assert run.who == "rollout"


@given(st.lists(st.tuples(st.sampled_from(["desired", "retired", *PASSED, *ENDS]), st.sampled_from([ONE, TWO]))))
def test_whatever_the_lines_every_commit_is_one_run_and_no_time_is_lost(lines: list[tuple[str, Target]]) -> None:
    """Law: as many committed runs as commits, idents are never repeated, and the steps last as long as the whole."""
    story = Story()
    runs = [run for result, target in lines if (run := story.line(result, target)) is not None]
    assert sum(run.result == "committed" for run in runs) == sum(result == "committed" for result, _ in lines)
    assert len({run.ident for run in runs}) == len(runs)
    for run in runs:
        assert sum(run.steps.values()) == (run.ended - run.begun).total_seconds()
