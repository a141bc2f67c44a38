"""What the lines of one model's audit make together: one finished rollout a time. Pure; times come with the lines."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from models.weights.rollout_runs import RolloutRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from models.rollout.gates import Verdict
    from models.rollout.messages import Target
    from serve.audit import Entry

PASSED: Final = {"fetched": "fetch", "judged": "judge", "prepared": "load", "shadow": "shadow", "canary": "canary"}
"""Results that a step ended well -> the step."""
ENDS: Final = frozenset({"committed", "rejected", "aborted", "superseded"})
MOST_WISHES: Final = 8


@dataclass(frozen=True, slots=True)
class _Wish:
    """Who asked for a version and why."""

    action: str
    target: Target
    who: str
    reason: str

    def is_about(self, target: Target) -> bool:
        # The promotion id of a rollback is made after its line: what it returns to is known by its content.
        if self.action == "promote":
            return self.target.promotion == target.promotion
        return (self.target.version, self.target.digest) == (target.version, target.digest)


@dataclass(slots=True)
class _Course:
    """The attempt under way. latest: when its last step ended."""

    target: Target
    begun: datetime
    latest: datetime
    steps: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    def passed(self, step: str, at: datetime) -> None:
        """Add the time since the last step ended to ``step``."""
        self.steps[step] = self.steps.get(step, 0.0) + max(0.0, (at - self.latest).total_seconds())
        self.latest = at


class Attempts:
    """Takes each line in its order; where one ends an attempt, returns it as a run.

    An attempt that fails in the same step as the one before, of the same target, brings no run of its own: a store that
    is away for a day would fill the registry. The next one that ends otherwise tells how many there were.
    """

    def __init__(self, new_ident: Callable[[], str]) -> None:
        """Follow from now. new_ident: returns a string that no rollout had before, of letters and digits."""
        self._new_ident = new_ident
        self._course: _Course | None = None
        self._wishes: deque[_Wish] = deque(maxlen=MOST_WISHES)
        self._tries: tuple[Target | None, int] = (None, 0)
        self._told: tuple[Target, str, str] | None = None
        self._breach = ""

    def take(self, entry: Entry, verdicts: Iterable[Verdict] = ()) -> RolloutRun | None:
        """Return the rollout that ``entry`` ends, or None. verdicts: what the gates have said of its target."""
        if entry.action in ("promote", "rollback"):
            self._wish(entry)
            return None
        target, result = entry.after, entry.result
        if target is None:
            return None
        if result == "rolled back":
            self._breach = entry.reason
            return None
        if result == "desired":
            self._course = _Course(target, entry.at, entry.at)
        elif result in PASSED or result in ENDS:
            course = self._of(target, entry.at)
            if result in ENDS:
                return self._end(course, entry, verdicts)
            course.passed(PASSED[result], entry.at)
            # What gates measured comes with their verdicts, refused or not.
            if result != "judged":
                course.measured |= {f"{result}_{name}": value for name, value in entry.measured.items()}
        return None

    def _wish(self, entry: Entry) -> None:
        if entry.result == "accepted" and entry.after is not None:
            self._wishes.append(_Wish(entry.action, entry.after, entry.who, entry.reason or entry.action))

    def _of(self, target: Target, at: datetime) -> _Course:
        if self._course is None or self._course.target != target:
            self._course = _Course(target, at, at)
        return self._course

    def _end(self, course: _Course, entry: Entry, verdicts: Iterable[Verdict]) -> RolloutRun | None:
        self._course = None
        target = course.target
        tried, tries = self._tries
        tries = tries + 1 if tried == target else 1
        self._tries = (target, tries)
        course.passed(_last_step(course, entry), entry.at)
        told = (target, entry.result, entry.reason.partition(":")[0])
        if entry.result != "committed" and told == self._told:
            return None
        self._told = told
        who, asked = self._asked(target, entry)
        return RolloutRun(
            ident=self._new_ident(),
            model=entry.model,
            version=target.version,
            digest=target.digest,
            from_version=entry.before.version if entry.before else "",
            from_digest=entry.before.digest if entry.before else "",
            result=entry.result,
            reason=entry.reason,
            who=who,
            asked=asked,
            generation=entry.generation,
            tries=tries,
            begun=course.begun,
            ended=entry.at,
            steps=course.steps,
            measured={**_figures(verdicts), **course.measured},
        )

    def _asked(self, target: Target, entry: Entry) -> tuple[str, str]:
        wish = next((each for each in reversed(self._wishes) if each.is_about(target)), None)
        if wish is not None:
            if entry.result == "committed":
                self._wishes.remove(wish)
            return wish.who, wish.reason
        breach, self._breach = self._breach, ""
        return entry.who, f"rolled back, {breach}" if breach else ""


def _last_step(course: _Course, entry: Entry) -> str:
    if entry.result == "committed":
        # The first release of a service is never held for: replicas load it and are admitted.
        return "hold" if "load" in course.steps else "load"
    return entry.reason.partition(":")[0] or entry.result


def _figures(verdicts: Iterable[Verdict]) -> Mapping[str, float]:
    figures: dict[str, float] = {}
    for each in verdicts:
        figures[f"{each.gate}_passed"] = float(each.passed)
        figures |= {f"{each.gate}_{name}": value for name, value in each.measured.items()}
    return figures
