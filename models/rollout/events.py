"""What happens to the rollout of one model: the coordinator's events, frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.rollout.gates import Verdict as GateVerdict
    from models.rollout.ledger import ClaimOutcome, Recovery, Verdict
    from models.rollout.messages import Attempt, Failure, Report, Target
    from models.rollout.policy import Pin, Rejection
    from models.weights.registry import Desired


@dataclass(frozen=True, slots=True)
class Recovered:
    """The ledger and the durable record were read; this life has ``incarnation``. rejections: made for good before."""

    incarnation: int
    recovery: Recovery
    restored: Target | None = None
    restored_previous: Target | None = None
    restored_generation: int = 0
    pin: Pin | None = None
    rejections: tuple[Rejection, ...] = ()


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
class Judged:
    """The gates before the fleet have spoken about the target."""

    target: Target
    verdicts: tuple[GateVerdict, ...]


@dataclass(frozen=True, slots=True)
class JudgeFailed:
    """The gates could not be asked."""

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
class MemberForgotten:
    """The replica does not stand in the ledger any more."""

    replica: str


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """The replica says that it can start no batch any more."""

    replica: str


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """Take back what was promoted last, committed or not, under this fresh promotion id; see ``rollback.py``."""

    promotion: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Recovered | DesiredRead | Fetched | FetchFailed | Judged | JudgeFailed | Claimed | Decided | Polled | TryTold
    | AdmitAsked | MemberRecorded | MemberDied | MemberForgotten | MemberLeft | RollbackAsked | Tick
)  # fmt: skip
