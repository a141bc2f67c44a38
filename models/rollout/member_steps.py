"""What happens to a replica's machine, and what it wants done: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.rollout.ledger import Verdict
    from models.rollout.messages import Attempt, Directive, Failure
    from models.rollout.trial import TrialStep

# Events


@dataclass(frozen=True, slots=True)
class Directed:
    """The actor answered a poll."""

    directive: Directive


@dataclass(frozen=True, slots=True)
class Prepared:
    """The attempt's release is loaded, warm and sees.

    golden_ms: least time of a golden image in it and in the one that serves (milliseconds), None where not measured.
    """

    attempt: Attempt
    golden_ms: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """The attempt's release may not serve here."""

    attempt: Attempt
    failure: Failure


@dataclass(frozen=True, slots=True)
class TrialBegun:
    """The trial step ``number`` of the attempt's release runs, as far as it is not held."""

    attempt: Attempt
    number: int


@dataclass(frozen=True, slots=True)
class TrialFailed:
    """A trial step of the attempt's release could not begin here."""

    attempt: Attempt
    failure: Failure


@dataclass(frozen=True, slots=True)
class Ruled:
    """The ledger says what stands for a generation."""

    generation: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class LedgerSilent:
    """The ledger could not be asked."""

    generation: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The replica was admitted on ``generation`` after it had been outside; it had asked at ``asked`` (strict mode)."""

    generation: int
    digest: str
    asked: float = 0.0


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The ledger, asked at ``asked``, says whether it counts this replica as a member."""

    asked: float
    member: bool


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """The ledger could not be asked whether it counts this replica."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Directed | Prepared | PrepareFailed | TrialBegun | TrialFailed | Ruled | LedgerSilent | Joined | Confirmed
    | Unconfirmed | Tick
)  # fmt: skip


# Effects


@dataclass(frozen=True, slots=True)
class Prepare:
    """Load, warm and test the attempt's release in the background; answer with Prepared or PrepareFailed."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the preparation under way; Prepared follows only where it had just ended."""


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop the candidate of this digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class BeginTrial:
    """Run this trial step of the attempt's release in place of the one before; answer with TrialBegun or TrialFailed.

    A hold goes on meanwhile.
    """

    attempt: Attempt
    step: TrialStep


@dataclass(frozen=True, slots=True)
class EndTrial:
    """Let the release that serves answer every client again."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Start no further batch."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Start batches again."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Make the prepared release the active one, in one tick of the loop."""

    digest: str
    generation: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Put ABORT for the generation; answer with Ruled or LedgerSilent."""

    generation: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """Ask the ledger whether it counts this replica as a member; answer with Confirmed or Unconfirmed."""


@dataclass(frozen=True, slots=True)
class FailAll:
    """Refuse queued and new requests with this message; None ends it."""

    message: str | None


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Load what is committed and ask to be admitted, holding all the while; answer with Joined."""


Effect = (
    Prepare | Cancel | Discard | BeginTrial | EndTrial | Hold | Resume | Flip | Ask | Confirm | FailAll | Rejoin
)  # fmt: skip
