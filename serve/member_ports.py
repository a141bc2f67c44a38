"""What a replica's part in a rollout asks of others: of its model's engine, and of the rollout actor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.evidence import Evidence
    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report
    from models.types import Release


class EnginePort(Protocol):
    """What a member asks of its model's engine."""

    def has(self, version: str, digest: str) -> bool:
        """Return whether this release is loaded under this version: preparing it would do nothing."""
        ...

    async def prepare(self, release: Release) -> None:
        """Load, warm and test ``release`` as the candidate. Raises ReleaseError."""
        ...

    def hold(self) -> None:
        """Start no further batch."""
        ...

    def resume(self) -> None:
        """Start batches again."""
        ...

    def flip(self, digest: str, generation: int) -> None:
        """Make a resident release the active one. Raises ReleaseFaultError where it is not resident."""
        ...

    def discard(self, digest: str) -> None:
        """Drop a candidate and end its trial."""
        ...

    async def golden_ms(self, digest: str) -> tuple[float, float] | None:
        """Return the least time of a golden image in the resident release of ``digest`` and in the serving one.

        Milliseconds, both > 0; None where nothing else serves or where there was no time to measure. Never raises.
        """
        ...

    def begin_trial(self, digest: str, generation: int, *, canary: float, shadow: float) -> None:
        """Begin a trial step of a resident release, or its next one. Raises ReleaseError."""
        ...

    def end_trial(self) -> None:
        """Let the serving release answer every client again."""
        ...

    def evidence(self) -> Evidence:
        """Return what the trial step under way has shown so far."""
        ...

    def watch(self) -> Evidence:
        """Return what the serving release has shown since its flip."""
        ...

    def watch_before(self) -> Evidence:
        """Return what the release before had shown in its last hour."""
        ...

    def fail_all(self, message: str | None) -> None:
        """Refuse requests with ``message`` until called with None."""
        ...


class ActorPort(Protocol):
    """What a member asks of the rollout actor. Every method may raise anything where the actor is lost."""

    async def next(self, model: str, report: Report) -> PollReply:
        """Report and wait, some seconds at most, for something to do."""
        ...

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """Return what a starting replica must load; None where it should ask again."""
        ...

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Ask to become a member on ``generation``, or tell why it could not be loaded."""
        ...

    async def leave(self, model: str, replica: str) -> None:
        """Say that this replica can start no batch any more."""
        ...

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """Return the files of a release, uint8 arrays (size,), shared memory where there is some."""
        ...

    async def signature(self, model: str, version: str, digest: str) -> str:
        """Return the signature under which the version was let in, "" for none; raises where it may not serve."""
        ...
