"""Hosts that lose each other: Ray's nodes in network namespaces of their own, the cable of one pulled out and put back.

Each replica has a client beside it, so that what a host answers while nobody reaches it is seen, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from diaries import Line, read, regressions
from hosts import Hosts, RefusedError
from stories import HERE, moments, only, story_folder, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAR = "far"
NAMES = ("head", "near", FAR)
REJOINS_S = 40.0
"""Two calls of 15 s to the rollout actor that are lost with their connection, and what it takes to make a new one."""


@dataclass(frozen=True)
class Told:
    """A story: what happened, and what every replica's client wrote meanwhile."""

    lines: list[dict[str, Any]]
    diaries: dict[str, list[Line]]

    @property
    def at(self) -> dict[str, float]:
        """Return when what happened, in monotonic seconds."""
        return moments(self.lines)

    @property
    def before(self) -> int:
        """Return the generation that served when the story began."""
        generation: int = only(self.lines, "ready")[0]["generation"]
        return generation

    @property
    def after(self) -> int:
        """Return the generation that was committed in it."""
        assert only(self.lines, "committed"), self.lines
        generation: int = only(self.lines, "committed")[-1]["generation"]
        return generation

    def errors(self, *names: str) -> list[Line]:
        """Return what the clients beside these replicas were not answered."""
        return [line for name in names for line in self.diaries[name] if line.code]

    def first(self, name: str) -> float:
        """Return when the client beside ``name`` was first answered by what was committed."""
        return min(line.answered for line in self.diaries[name] if line.generation == self.after)


@pytest.fixture
def play() -> Iterator[Callable[[str], Told]]:
    """Return a function that plays a scenario of partition_story.py and returns the story."""
    try:
        with Hosts(NAMES) as hosts, story_folder() as folder:

            def run(scenario: str) -> Told:
                command = hosts.on("head", sys.executable, str(HERE / "partition_story.py"), scenario)
                task = {
                    "folder": str(folder),
                    "addresses": hosts.addresses,
                    "on": {name: hosts.on(name) for name in NAMES},
                    "pull": hosts.pull(FAR),
                    "plug": hosts.plug(FAR),
                }
                lines = told(command, given=task, within_s=240.0)
                assert lines[-1]["what"] == "end", lines
                return Told(lines, read(folder / "home"))

            yield run
    except RefusedError as refused:
        pytest.skip(str(refused))


def test_a_partition_of_seconds_only_delays_a_promotion(play: Callable[[str], Told]) -> None:
    """Nobody commits without the replica that is cut off; all answer all the time, and no version comes back."""
    story = play("brief")
    at = story.at
    assert only(story.lines, "serving")[0]["version"] == "1"
    assert min(story.first(name) for name in NAMES) > at["plugged"]
    assert story.errors(*NAMES) == []
    assert regressions(story.diaries) == []
    print(f"\ncommitted {at['committed'] - at['plugged']:.1f} s after the cable was back")  # noqa: T201 - a figure


def test_a_replica_that_is_cut_off_in_a_hold_answers_503_and_never_an_old_version(play: Callable[[str], Told]) -> None:
    """Rule 10: it cannot learn what was decided, so past its limit it refuses, until the ledger can be asked again."""
    story = play("doubt")
    at, far = story.at, story.diaries[FAR]
    decided = min(story.first("head"), story.first("near"))
    assert at["pulled"] < decided < at["plugged"]
    refused = story.errors(FAR)
    assert {line.code for line in refused} == {"unavailable"}
    assert at["pulled"] < refused[0].answered < at["plugged"]
    assert [line for line in far if line.sent > at["pulled"] and line.generation == story.before] == []
    assert [line for line in far if at["pulled"] + 0.5 < line.answered < at["plugged"] and not line.code] == []
    assert story.first(FAR) > at["plugged"]
    assert story.errors("head", "near") == []
    assert regressions(story.diaries) == []
    print(f"\nrefused from {refused[0].answered - at['pulled']:.1f} s after the cable was pulled, "  # noqa: T201
          f"answered again {story.first(FAR) - at['plugged']:.1f} s after it was back")  # fmt: skip


@pytest.mark.parametrize("scenario", ["lost", "lost-with-the-actor"])
def test_a_host_that_stays_cut_off_is_left_behind(play: Callable[[str], Told], scenario: str) -> None:
    """The others commit once its death is proven, not before; its own clients get the old version until it is back.

    That is the exception which the promise names; strict mode, below, is without it.
    """
    story = play(scenario)
    at, far = story.at, story.diaries[FAR]
    others = min(story.first("head"), story.first("near"))
    assert others > at["pulled"] + 2.0, "they did not wait for a proof of its death"
    assert story.errors("head", "near") == []
    alone = [line for line in far if at["pulled"] < line.sent < at["plugged"]]
    assert {line.generation for line in alone if not line.code} == {story.before}
    assert [line for line in alone if line.code] == []
    assert {line.replica for line in regressions(story.diaries)} <= {FAR}
    stale = [line for line in regressions(story.diaries) if line.replica == FAR]
    end = stale[-1].answered
    print(f"\n{scenario}: the others committed {others - at['pulled']:.1f} s after the cable was pulled; the one "  # noqa: T201
          f"cut off gave {len(stale)} old answers in {end - others:.1f} s, the last {end - at['plugged']:+.1f} s after "
          "the cable was back")  # fmt: skip
    # Once it hears of the others, it answers no more with what was superseded.
    assert end < at["plugged"] + REJOINS_S


@pytest.mark.parametrize("scenario", ["lost-strict", "lost-with-the-actor-strict"])
def test_in_strict_mode_a_host_that_is_cut_off_gives_no_old_answer_after_the_others_commit(
    play: Callable[[str], Told], scenario: str
) -> None:
    """Its replica refuses first, though the actor's former life may talk to it there; the others wait for that."""
    story = play(scenario)
    at, far = story.at, story.diaries[FAR]
    others = min(story.first("head"), story.first("near"))
    refused = story.errors(FAR)
    assert {line.code for line in refused} == {"unavailable"}
    assert at["pulled"] < refused[0].answered < others < at["plugged"]
    alone = [line for line in far if line.sent > refused[0].answered]
    assert [line for line in alone if line.generation == story.before] == []
    assert story.errors("head", "near") == []
    assert regressions(story.diaries) == []
    print(f"\n{scenario}: refused from {refused[0].answered - at['pulled']:.1f} s after the cable was pulled, the "  # noqa: T201
          f"others committed after {others - at['pulled']:.1f} s; {len(refused)} refusals, "
          f"0 old answers")  # fmt: skip


def test_in_strict_mode_a_replica_that_was_only_alone_answers_again_and_goes_along(play: Callable[[str], Told]) -> None:
    """Nobody counted it out, so the ledger's first word is enough; the promotion waited for it as always."""
    story = play("alone-strict")
    at, far = story.at, story.diaries[FAR]
    assert only(story.lines, "serving")[0]["version"] == "1"
    refused = story.errors(FAR)
    assert {line.code for line in refused} == {"unavailable"}
    assert at["pulled"] < refused[0].answered < at["plugged"]
    again = [line for line in far if line.sent > refused[0].answered and not line.code]
    assert again[0].answered > at["plugged"]
    assert min(story.first(name) for name in NAMES) > at["plugged"]
    assert story.errors("head", "near") == []
    assert regressions(story.diaries) == []
    print(f"\nrefused from {refused[0].answered - at['pulled']:.1f} s after the cable was pulled, "  # noqa: T201
          f"answered again {again[0].answered - at['plugged']:.1f} s after it was back")  # fmt: skip
