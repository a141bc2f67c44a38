"""Which release answers: three slots, leases that pin a release, and the flip that moves them in one step.

Everything here runs on the event loop's thread and never awaits, so each method is one indivisible step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.errors import ReleaseFaultError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engine.backends.backend import Plan, Session
    from models.types import Release


@dataclass(slots=True, eq=False)
class Resident:
    """A loaded release.

    renamed: the same content under another version, in force from its next flip. reserved: a lane that somebody uses
    whom the batcher does not know of.
    """

    release: Release
    session: Session
    leases: int = 0
    retired: bool = False
    renamed: Release | None = None
    reserved: int | None = None


@dataclass(slots=True, eq=False)
class Lease:
    """The right to use one release; its session is not closed before ``end``."""

    release: Release
    session: Session
    generation: int
    _resident: Resident
    _slots: Slots
    _ended: bool = False

    @property
    def plan(self) -> Plan:
        """Return how the leased session wants to be driven."""
        return self.session.plan

    @property
    def reserved(self) -> int | None:
        """Return the lane of the leased session that is not the batcher's to use now."""
        return self._resident.reserved

    def reserve(self, lane: int | None) -> None:
        """Keep ``lane`` from the batcher; None gives it back."""
        self._resident.reserved = lane

    def end(self) -> None:
        """Give the release back; idempotent."""
        if not self._ended:
            self._ended = True
            self._slots.lease_ended(self._resident)


@dataclass(slots=True, eq=False)
class Slots:
    """The active, the previous and the candidate release.

    ``free`` is called once for each release that has left the slots and has no lease any more.
    """

    free: Callable[[Release, Session], None]
    active: Resident | None = None
    previous: Resident | None = None
    candidate: Resident | None = None
    generation: int = 0

    @property
    def leases(self) -> int:
        """Return how many leases of the resident releases are held."""
        return sum(each.leases for each in (self.active, self.previous, self.candidate) if each is not None)

    def lease(self) -> Lease | None:
        """Pin the active release and return the lease; None when nothing is active."""
        return None if self.active is None else self._lease(self.active)

    def lease_resident(self, digest: str, generation: int) -> Lease | None:
        """Pin the release of that digest, active or not, to answer under ``generation``; None when it is not resident.

        Where its content waits to serve under another version, the lease bears that one already.
        """
        resident = self.find(digest)
        if resident is None:
            return None
        resident.leases += 1
        return Lease(resident.renamed or resident.release, resident.session, generation, resident, self)

    def offer(self, release: Release, session: Session) -> None:
        """Make a loaded release the candidate; another candidate is retired."""
        self._retire(self.candidate)
        self.candidate = Resident(release, session)

    def find(self, digest: str) -> Resident | None:
        """Return the resident release of that digest, None if it is not loaded."""
        for resident in (self.active, self.candidate, self.previous):
            if resident is not None and resident.release.digest == digest:
                return resident
        return None

    def flip(self, digest: str, generation: int) -> Release:
        """Make the resident of that digest active under ``generation`` and return its release.

        The old active release becomes the previous one, the old previous one is retired. Flipping to what is already
        active only moves the generation. Raises ReleaseFaultError (step ``commit``) when the digest is not resident.
        """
        target = self.find(digest)
        if target is None:
            msg = "the version to switch to is not loaded in this replica; prepare it first"
            raise ReleaseFaultError(msg, step="commit")
        if target.renamed is not None:
            target.release, target.renamed = target.renamed, None
        self.generation = generation
        if target is self.active:
            return target.release
        retired = None if target is self.previous else self.previous
        if target is self.candidate:
            self.candidate = None
        self.previous, self.active = self.active, target
        self._retire(retired)
        return target.release

    def discard(self, digest: str) -> None:
        """Retire the candidate if it has that digest; forget a new name that waits for its flip."""
        if self.candidate is not None and self.candidate.release.digest == digest:
            retired, self.candidate = self.candidate, None
            self._retire(retired)
        resident = self.find(digest)
        if resident is not None:
            resident.renamed = None

    def clear(self) -> None:
        """Retire everything."""
        residents = (self.active, self.previous, self.candidate)
        self.active = self.previous = self.candidate = None
        for resident in residents:
            self._retire(resident)

    def lease_ended(self, resident: Resident) -> None:
        """Count one lease less; called by the lease."""
        resident.leases -= 1
        self._free_if_unused(resident)

    def _lease(self, resident: Resident) -> Lease:
        resident.leases += 1
        return Lease(resident.release, resident.session, self.generation, resident, self)

    def _retire(self, resident: Resident | None) -> None:
        if resident is not None:
            resident.retired = True
            self._free_if_unused(resident)

    def _free_if_unused(self, resident: Resident) -> None:
        if resident.retired and resident.leases == 0:
            self.free(resident.release, resident.session)
