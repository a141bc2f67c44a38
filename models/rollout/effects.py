"""What the rollout of one model wants done: the coordinator's effects, frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.rollout.ledger import Verdict
    from models.rollout.messages import Admission, Attempt, Failure, Target
    from models.rollout.order import Order
    from models.rollout.policy import Pin

Passed = Literal["desired", "fetched", "judged", "prepared", "shadow", "canary", "retired", "proven", "unproven"]
"""retired: it served before and answers nowhere any more. proven: its probation is over. unproven: it is over, too, and
no image was answered meanwhile."""
Ended = Literal["rejected", "aborted", "superseded", "rolled back"]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring the target's files here and verify them; answer with Fetched or FetchFailed."""

    target: Target


@dataclass(frozen=True, slots=True)
class Judge:
    """Have the gates compare the target, which is fetched, with what serves; answer with Judged or JudgeFailed."""

    target: Target
    serving: Target
    order: Order


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
    """Run ``ledger.forget_member``; answer with MemberForgotten."""

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
    """Something ended without a commit, or its commit is taken back: write it down."""

    target: Target
    result: Ended
    failure: Failure


@dataclass(frozen=True, slots=True)
class Note:
    """A step ended well: write it down. reason: what speaks for it, measured: name -> number; both may be empty."""

    target: Target
    result: Passed
    reason: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


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
    Fetch | Judge | Claim | Decide | RecordMember | ForgetMember | Admit | Announce | Audit | Note | SavePin | MoveAlias
    | Depose
)  # fmt: skip
