"""What the rollout actor and the replicas tell each other: frozen values, picklable, free of behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from models.evidence import Evidence
    from models.rollout.trial import TrialStep

MemberPhase = Literal["idle", "preparing", "prepared", "holding", "failed"]
"""``holding`` lasts from the acknowledged HOLD until the attempt's decision is known, doubt included, or until the
canary step begins for which it was asked."""

DirectiveKind = Literal["stay", "prepare", "trial", "hold", "go", "release", "rejoin"]
"""``go`` and ``release`` are sent once the ledger holds COMMIT or ABORT: they report a decision, never make one."""

Admission = Literal["admitted", "retry", "stale"]
"""``retry``: ask again soon, a commit is under way. ``stale``: load what is committed now and ask again."""


@dataclass(frozen=True, slots=True)
class Target:
    """One version as one promotion asked for it: the key under which a rejection is remembered.

    digest: 64 hex digits. promotion: id of the promote or rollback that named the version, "" where none did.
    """

    version: str
    digest: str
    promotion: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claimed generation: the try to bring ``target`` to every member.

    generation: >= 1, never reused. incarnation: of the actor that claimed it, >= 1.
    previous: what served when it was claimed; None for the first. rollback: it was claimed for a rollback.
    """

    generation: int
    incarnation: int
    target: Target
    previous: Target | None = None
    rollback: bool = False

    @property
    def back(self) -> Target | None:
        """Return what a rollback of this attempt returns to: never a version that was itself rolled back from."""
        return None if self.rollback else self.previous

    @property
    def key(self) -> tuple[int, int]:
        """Return (generation, incarnation), which acknowledgements carry."""
        return (self.generation, self.incarnation)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a release may not serve. step: of the weights flow. permanent: the same bytes will fail again."""

    step: str
    reason: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself on every poll; acknowledgements are reports.

    seq: rises by one a report, so that late ones are ignored. generation: the one it answers with.
    attempt: (generation, incarnation) that ``phase`` is about. candidate: digest loaded beside the active one.
    settled: highest generation whose decision it knows. trial: number of the attempt's trial step that runs here, 0 for
    none; evidence: what it has shown here. golden_ms: least time of a golden image in the attempt's release and in the
    one that serves (milliseconds). watch, watch_before: for a while after a commit, what the release that serves has
    shown here since, and what the one before had shown in its last hour.
    """

    replica: str
    seq: int
    generation: int
    digest: str
    phase: MemberPhase = "idle"
    attempt: tuple[int, int] | None = None
    candidate: str | None = None
    failure: Failure | None = None
    settled: int = 0
    trial: int = 0
    evidence: Evidence | None = None
    golden_ms: tuple[float, float] | None = None
    watch: Evidence | None = None
    watch_before: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Directive:
    """What the actor wants of one replica now; repeating or losing one is harmless.

    incarnation: of the sender. attempt: for prepare, trial, hold and go. generation: for release.
    keep: digest that a ``stay`` lets the replica keep as its candidate; any other candidate goes.
    step: of ``trial``. stage: the trial step out of which a ``hold`` is asked, 0 for none; another one is an old story.
    """

    kind: DirectiveKind
    incarnation: int
    attempt: Attempt | None = None
    generation: int = 0
    keep: str | None = None
    step: TrialStep | None = None
    stage: int = 0


@dataclass(frozen=True, slots=True)
class PollReply:
    """The answer to a poll. directive: None means keep polling. arms: (fault point, action) to arm, tests only."""

    directive: Directive | None
    arms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Join:
    """What a starting replica must load before it asks for admission. decided: False for the very first commit."""

    attempt: Attempt
    incarnation: int
    decided: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """There is nothing that a starting replica could load, and why."""

    failure: Failure
