"""An engine that loads nothing: what a member needs of one, with every call recorded. For tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import ReleaseFaultError
from models.evidence import Evidence

if TYPE_CHECKING:
    from models.errors import ReleaseError
    from models.types import Release


class FakeEngine:
    """Fulfils serve.member_ports.EnginePort. refuse: digest -> the error that preparing it raises.

    Attributes: active is (digest, generation) or None; answering, whether a batch could start; calls, oldest first;
    trial, (digest, generation, canary, shadow) of the step under way or None. To be set: golden, milliseconds by
    digest; seen, what each digest shows in a trial or while it serves; untriable, the error that beginning one raises.
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
        self.trial: tuple[str, int, float, float] | None = None
        self.golden: dict[str, float] = {}
        self.seen: dict[str, Evidence] = {}
        self.untriable: ReleaseError | None = None

    @property
    def answering(self) -> bool:
        """Return whether a batch could start now."""
        return self.active is not None and not self.held and self.failing is None

    def has(self, version: str, digest: str) -> bool:
        """Return whether ``digest`` is loaded, under whatever version: ``version`` is not kept."""
        return bool(version) and self._resident(digest)

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
        self.trial = None

    async def golden_ms(self, digest: str) -> tuple[float, float] | None:
        """Return what ``golden`` holds of both, None where it does not."""
        serving = self.active[0] if self.active else ""
        if digest not in self.golden or serving not in self.golden:
            return None
        return self.golden[digest], self.golden[serving]

    def begin_trial(self, digest: str, generation: int, *, canary: float, shadow: float) -> None:
        """Note the step, or raise ``untriable``; raises ReleaseFaultError where the release is not resident."""
        self.calls.append(f"trial {generation} canary {canary:g} shadow {shadow:g}")
        if self.untriable is not None:
            raise self.untriable
        if not self._resident(digest):
            msg = "the version to try is not loaded; prepare it first"
            raise ReleaseFaultError(msg, step="canary")
        self.trial = (digest, generation, canary, shadow)

    def end_trial(self) -> None:
        """End the trial."""
        self.calls.append("end trial")
        self.trial = None

    def evidence(self) -> Evidence:
        """Return what is ``seen`` of the version on trial."""
        return self.seen.get(self.trial[0], Evidence()) if self.trial else Evidence()

    def watch(self) -> Evidence:
        """Return what is ``seen`` of the version that serves."""
        return self.seen.get(self.active[0], Evidence()) if self.active else Evidence()

    def watch_before(self) -> Evidence:
        """Return what is ``seen`` of the version before."""
        return self.seen.get(self.previous, Evidence()) if self.previous else Evidence()

    def discard(self, digest: str) -> None:
        """Drop a candidate."""
        self.calls.append("discard")
        self.trial = None if self.trial is not None and self.trial[0] == digest else self.trial
        self.candidate = None if self.candidate == digest else self.candidate

    def fail_all(self, message: str | None) -> None:
        """Refuse requests with ``message`` until called with None."""
        self.calls.append("fail" if message else "fail no more")
        self.failing = message

    def _resident(self, digest: str) -> bool:
        return digest in (self.active[0] if self.active else None, self.previous, self.candidate)
