"""Which versions of a model, and which cached releases, may be pruned. Pure.

What is in use is never pruned, by no rule and by no command: what serves, what served before and a rollback returns to,
what is desired or pinned, what is being tried, and what carries an alias. Of the rest the newest stay, and the young.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from models.errors import ReleaseRejectedError
from models.weights.registry import PRODUCTION, READY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.weights.registry import VersionInfo

REGISTERING: Final = timedelta(hours=1)
"""Age up to which a version without its ready tag may be one whose registration still runs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What stays beside what is in use: the ``newest`` (>= 0) and everything younger than ``days`` (>= 0)."""

    newest: int
    days: float


NOTHING_BESIDE: Final = Rule(0, 0.0)
"""What is in use stays, and nothing else."""


@dataclass(frozen=True, slots=True)
class InUse:
    """Versions of one model that must stay, by why. candidates: on their way to the fleet, or held by a replica."""

    serving: frozenset[str] = frozenset()
    previous: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    desired: frozenset[str] = frozenset()
    candidates: frozenset[str] = frozenset()

    def __or__(self, other: InUse) -> InUse:
        """Return what either knows of."""
        return InUse(
            self.serving | other.serving,
            self.previous | other.previous,
            self.pinned | other.pinned,
            self.desired | other.desired,
            self.candidates | other.candidates,
        )


@dataclass(frozen=True, slots=True)
class Item:
    """A version or a cached release. created: with its time zone. whole: it is complete, so it counts as a newest."""

    name: str
    created: datetime
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one item. kept: why it stays, "" where it may go."""

    name: str
    kept: str


def fates(items: Sequence[Item], protected: Mapping[str, str], rule: Rule, now: datetime) -> tuple[Fate, ...]:
    """Return what becomes of each of ``items``, oldest first, in their order. protected: name -> why it must stay."""
    whole = [item.name for item in items if item.whole]
    newest = frozenset(whole[len(whole) - rule.newest :] if rule.newest < len(whole) else whole)
    return tuple(Fate(item.name, _reason(item, protected, newest, rule, now)) for item in items)


def protected(versions: Sequence[VersionInfo], use: InUse, now: datetime) -> dict[str, str]:
    """Return version -> why nobody may delete it, as the end of a sentence that begins with the version."""
    reasons: dict[str, str] = {}
    for info in versions:
        reason = _use(info, use)
        if not reason and info.state != READY and now - created(info) < REGISTERING:
            reason = "may still be being registered"
        if reason:
            reasons[info.version] = reason
    return reasons


def items(versions: Sequence[VersionInfo]) -> list[Item]:
    """Return registered versions as items, in their order."""
    return [Item(info.version, created(info), whole=info.state == READY) for info in versions]


def created(info: VersionInfo) -> datetime:
    """Return when a version was registered; a moment that cannot be read counts as the latest, so that it stays."""
    try:
        moment = datetime.fromisoformat(info.created)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def aliased(info: VersionInfo) -> ReleaseRejectedError:
    """Return the registry's own refusal to delete a version that an alias names."""
    msg = (
        f"Version {info.version} of {info.model} carries the alias {', '.join(info.aliases)} and stays; move the alias "
        "first."
    )
    return ReleaseRejectedError(msg, step="delete")


def _use(info: VersionInfo, use: InUse) -> str:
    version = info.version
    if version in use.serving:
        return "serves"
    if version in use.previous:
        return "served before, and a rollback returns to it"
    if version in use.pinned:
        return "is what the last rollback returns to"
    if version in use.desired or PRODUCTION in info.aliases:
        return "is the desired version"
    if version in use.candidates:
        return "is on its way to the replicas"
    return f"carries the alias {', '.join(info.aliases)}" if info.aliases else ""


def _reason(item: Item, protected: Mapping[str, str], newest: frozenset[str], rule: Rule, now: datetime) -> str:
    reason = protected.get(item.name)
    if reason:
        return reason
    if item.name in newest:
        return f"is one of the newest {rule.newest}"
    # Compared as ages: a moment that cannot be read lies so far away that adding days to it would overflow.
    if now - item.created < timedelta(days=rule.days):
        return f"is younger than {rule.days:g} days"
    return ""
