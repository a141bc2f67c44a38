"""What the rollout actor knows of one model, what happens to it, and what it wants done: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.rollout.ledger import ClaimOutcome, Recovery, Verdict
    from models.rollout.messages import Admission, Attempt, Failure, Report, Target
    from models.rollout.policy import Pin, Rejection
    from models.weights.registry import Desired

Phase = Literal["boot", "idle", "fetch", "claim", "bootstrap", "prepare", "hold", "commit", "abort", "deposed"]
"""boot: the ledger is being read. bootstrap: nothing is committed, starting replicas try the attempt. commit, abort:
the decision is being written. deposed: a later life of the actor exists; this one acts no more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds. ack_fraction: part of the hold deadline within which all must have acknowledged."""

    hold_deadline_s: float = 0.5
    ack_fraction: float = 0.6
    fresh_s: float = 1.0
    death_margin_s: float = 1.0
    prepare_timeout_s: float = 120.0
    backoff_s: float = 1.0
    backoff_cap_s: float = 60.0
    hold_backoff_s: float = 0.2
    hold_backoff_cap_s: float = 5.0
    max_deaths: int = 3


@dataclass(frozen=True, slots=True)
class View:
    """One member as last heard of. admitted: durably recorded. seen: last report; died_at: proof of its death."""

    admitted: bool = False
    seen: float | None = None
    died_at: float | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class State:
    """All that the actor knows of one model. Moments are on one monotonic clock, in seconds.

    restored: what the durable record of an earlier service says was committed; loaded before the desired version.
    aborted: generations above the committed one whose decision is ABORT.
    joining: replicas whose admission waits for a durable record or the first commit.
    trying: before the first commit, replicas that were told to load the attempt, and when.
    deaths, hold_failures: of members while ``last``, the target tried most recently, was prepared or held.
    """

    model: str
    timing: Timing = field(default_factory=Timing)
    incarnation: int = 0
    phase: Phase = "boot"
    since: float = 0.0
    committed: Attempt | None = None
    top: int = 0
    aborted: frozenset[int] = frozenset()
    members: Mapping[str, View] = field(default_factory=dict)
    joining: frozenset[str] = frozenset()
    trying: Mapping[str, float] = field(default_factory=dict)
    desired: Desired | None = None
    heard: bool = False
    restored: Target | None = None
    restored_previous: Target | None = None
    pin: Pin | None = None
    target: Target | None = None
    last: Target | None = None
    attempt: Attempt | None = None
    rejections: tuple[Rejection, ...] = ()
    deaths: int = 0
    hold_failures: int = 0
    not_before: float = 0.0
    note: str = ""


# Events


@dataclass(frozen=True, slots=True)
class Recovered:
    """The ledger and the durable record were read; this life has ``incarnation``."""

    incarnation: int
    recovery: Recovery
    restored: Target | None = None
    restored_previous: Target | None = None
    restored_generation: int = 0
    pin: Pin | None = None


@dataclass(frozen=True, slots=True)
class DesiredRead:
    """The production alias was read."""

    desired: Desired | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The target's files are here and verified."""

    target: Target


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """The target cannot be had, or is not what it claims to be."""

    target: Target
    failure: Failure


@dataclass(frozen=True, slots=True)
class Claimed:
    """The claim of a generation was settled."""

    attempt: Attempt
    outcome: ClaimOutcome


@dataclass(frozen=True, slots=True)
class Decided:
    """The ledger says what stands for a generation."""

    generation: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Polled:
    """A replica reported."""

    report: Report


@dataclass(frozen=True, slots=True)
class TryTold:
    """A starting replica was told to load an attempt that nobody has committed yet."""

    replica: str
    generation: int


@dataclass(frozen=True, slots=True)
class AdmitAsked:
    """A starting replica has loaded ``generation`` (failure None) or could not."""

    replica: str
    generation: int
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class MemberRecorded:
    """A member stands in the ledger; ``in_charge`` False when a later life of the actor exists."""

    replica: str
    in_charge: bool


@dataclass(frozen=True, slots=True)
class MemberDied:
    """The replica's process is proven dead."""

    replica: str


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """The replica says that it can start no batch any more."""

    replica: str


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Go back to what served before, under this fresh promotion id."""

    promotion: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Recovered | DesiredRead | Fetched | FetchFailed | Claimed | Decided | Polled | TryTold | AdmitAsked
    | MemberRecorded | MemberDied | MemberLeft | RollbackAsked | Tick
)  # fmt: skip


# Effects


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the target's files here and verify them; answer with Fetched or FetchFailed."""

    target: Target


@dataclass(frozen=True, slots=True)
class Claim:
    """Run ``ledger.claim``; answer with Claimed."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Decide:
    """Put the verdict, again and again until the ledger answers; answer with Decided."""

    generation: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RecordMember:
    """Run ``ledger.record_member``; answer with MemberRecorded."""

    replica: str


@dataclass(frozen=True, slots=True)
class ForgetMember:
    """Run ``ledger.forget_member``."""

    replica: str


@dataclass(frozen=True, slots=True)
class Admit:
    """Answer the replica's admission."""

    replica: str
    answer: Admission


@dataclass(frozen=True, slots=True)
class Announce:
    """A generation is committed: record it durably, in the audit and, off the critical path, in the registry."""

    attempt: Attempt
    started: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Something ended without a commit: write it down. result: rejected, aborted or superseded."""

    target: Target
    result: Literal["rejected", "aborted", "superseded"]
    failure: Failure


@dataclass(frozen=True, slots=True)
class SavePin:
    """Store the pin durably before anything else happens for it."""

    pin: Pin | None


@dataclass(frozen=True, slots=True)
class MoveAlias:
    """Point the registry's alias at the pin's target, if the alias still names what the pin overrides."""

    pin: Pin


@dataclass(frozen=True, slots=True)
class Depose:
    """A later life exists: end this process."""


Effect = (
    Fetch | Claim | Decide | RecordMember | ForgetMember | Admit | Announce | Audit | SavePin | MoveAlias | Depose
)  # fmt: skip
