"""Which versions may be pruned: as a table, and as laws."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.weights.registry import READY, VersionInfo
from models.weights.retention import InUse, Item, Rule, created, fates, items, protected

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def info(version: int, *, days: float = 100.0, state: str = READY, aliases: tuple[str, ...] = ()) -> VersionInfo:
    """Return a version that was registered ``days`` ago."""
    when = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds")
    return VersionInfo("m", str(version), "", state, "true", "", when, aliases)


def gone(versions: list[VersionInfo], use: InUse, rule: Rule) -> list[str]:
    """Return what may go."""
    return [fate.name for fate in fates(items(versions), protected(versions, use, NOW), rule, NOW) if not fate.kept]


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (InUse(serving=frozenset("1")), "serves"),
        (InUse(previous=frozenset("1")), "served before, and a rollback returns to it"),
        (InUse(pinned=frozenset("1")), "is what the last rollback returns to"),
        (InUse(desired=frozenset("1")), "is the desired version"),
        (InUse(candidates=frozenset("1")), "is on its way to the replicas"),
    ],
)
def test_what_is_in_use_stays(use: InUse, reason: str) -> None:
    """Whatever the rule says, and with the reason."""
    versions = [info(1), info(2)]
    assert protected(versions, use, NOW) == {"1": reason}
    assert gone(versions, use, Rule(0, 0.0)) == ["2"]


def test_an_alias_protects() -> None:
    """The production alias means desired; any other is somebody's reason to keep it."""
    versions = [info(1, aliases=("production",)), info(2, aliases=("audit", "staging")), info(3)]
    assert protected(versions, InUse(), NOW) == {
        "1": "is the desired version",
        "2": "carries the alias audit, staging",
    }


def test_the_newest_and_the_young_stay() -> None:
    """Both halves of the rule, each alone."""
    versions = [info(1, days=30), info(2, days=20), info(3, days=5), info(4, days=1)]
    assert gone(versions, InUse(), Rule(3, 0.0)) == ["1"]
    assert gone(versions, InUse(), Rule(0, 7.0)) == ["1", "2"]
    assert gone(versions, InUse(), Rule(9, 0.0)) == []
    assert gone(versions, InUse(serving=frozenset("1")), Rule(1, 0.0)) == ["2", "3"]


def test_a_version_that_never_became_ready_goes_after_an_hour() -> None:
    """It may be in the middle of its registration before, and never counts as one of the newest."""
    versions = [info(1), info(2, days=0.01, state=""), info(3, days=1, state="")]
    assert protected(versions, InUse(), NOW) == {"2": "may still be being registered"}
    assert gone(versions, InUse(), Rule(1, 0.0)) == ["3"]


@pytest.mark.parametrize("text", ["", "yesterday"])
def test_a_version_of_unknown_age_counts_as_young(text: str) -> None:
    """Nothing is deleted because a date cannot be read."""
    strange = VersionInfo("m", "1", "", READY, "true", "", text)
    assert created(strange) > NOW
    assert gone([strange], InUse(), Rule(0, 36_500.0)) == []
    assert created(VersionInfo("m", "1", "", READY, "true", "", "2026-11-22T00:00:00")) == NOW


names = st.sets(st.integers(1, 12).map(str), max_size=4).map(frozenset)
uses = st.builds(InUse, names, names, names, names, names)


@given(
    ages=st.lists(st.floats(0.0, 1000.0), max_size=12),
    use=uses,
    newest=st.integers(0, 14),
    days=st.floats(0.0, 1000.0),
)
def test_nothing_in_use_new_or_young_ever_goes(ages: list[float], use: InUse, newest: int, days: float) -> None:
    """And everything else does: the rule leaves nothing undecided."""
    versions = [info(number, days=age) for number, age in enumerate(sorted(ages, reverse=True), start=1)]
    rule = Rule(newest, days)
    kept = {fate.name: fate.kept for fate in fates(items(versions), protected(versions, use, NOW), rule, NOW)}
    in_use = use.serving | use.previous | use.pinned | use.desired | use.candidates
    newest_names = {version.version for version in versions[max(0, len(versions) - newest) :]}
    for version in versions:
        young = NOW - created(version) < timedelta(days=days)
        stays = version.version in in_use or version.version in newest_names or young
        assert bool(kept[version.version]) == stays
    assert list(kept) == [version.version for version in versions]


@given(first=uses, second=uses)
def test_uses_add_up(first: InUse, second: InUse) -> None:
    """What either source knows to be in use is protected."""
    versions = [info(number) for number in range(1, 13)]
    both = protected(versions, first | second, NOW).keys()
    assert both == protected(versions, first, NOW).keys() | protected(versions, second, NOW).keys()


def test_cached_releases_follow_the_same_rule() -> None:
    """Items need no registry behind them."""
    stored = [Item(name, NOW - timedelta(days=9 - place)) for place, name in enumerate("abcd")]
    assert [fate.kept for fate in fates(stored, {"a": "serves"}, Rule(1, 7.0), NOW)] == [
        "serves",
        "",
        "",
        "is one of the newest 1",
    ]
