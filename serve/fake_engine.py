"""An engine that loads nothing: what a member needs of one, with every call recorded. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import ReleaseFaultError

if TYPE_CHECKING:
    from models.errors import ReleaseError
    from models.types import Release


class FakeEngine:
    """Fulfils serve.member.EnginePort. refuse: digest -> the error that preparing it raises.

    Attributes: active is (digest, generation) or None; answering, whether a batch could start; calls, oldest first.
    """

    def __init__(self, refuse: dict[str, ReleaseError] | None = None) -> None:
        """Start empty, not held."""
        self.refuse = refuse or {}
        self.active: tuple[str, int] | None = None
        self.previous: str | None = None
        self.candidate: str | None = None
        self.held = False
        self.failing: str | None = None
        self.calls: list[str] = []

    @property
    def answering(self) -> bool:
        """Return whether a batch could start now."""
        return self.active is not None and not self.held and self.failing is None

    async def prepare(self, release: Release) -> None:
        """Make ``release`` the candidate, or raise what ``refuse`` names."""
        self.calls.append(f"prepare {release.version}")
        if release.digest in self.refuse:
            raise self.refuse[release.digest]
        if not self._resident(release.digest):
            self.candidate = release.digest

    def hold(self) -> None:
        """Start no further batch."""
        self.calls.append("hold")
        self.held = True

    def resume(self) -> None:
        """Start batches again."""
        self.calls.append("resume")
        self.held = False

    def flip(self, digest: str, generation: int) -> None:
        """Make ``digest`` active. Raises ReleaseFaultError where it is not resident."""
        self.calls.append(f"flip {generation}")
        if not self._resident(digest):
            msg = "the version to switch to is not loaded; prepare it first"
            raise ReleaseFaultError(msg, step="commit")
        old = self.active[0] if self.active else None
        if digest != old:
            self.previous = old
            self.candidate = None if self.candidate == digest else self.candidate
        self.active = (digest, generation)

    def discard(self, digest: str) -> None:
        """Drop a candidate."""
        self.calls.append("discard")
        self.candidate = None if self.candidate == digest else self.candidate

    def fail_all(self, message: str | None) -> None:
        """Refuse requests with ``message`` until called with None."""
        self.calls.append("fail" if message else "fail no more")
        self.failing = message

    def _resident(self, digest: str) -> bool:
        return digest in (self.active[0] if self.active else None, self.previous, self.candidate)
