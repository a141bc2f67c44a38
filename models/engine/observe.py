"""What the engine tells whoever counts: one method an event, called where it happens, never raising."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from models.engine.backends.backend import Shape
    from models.types import Answer, ReleaseId


class Observer(Protocol):
    """Receives the engine's events on the event loop's thread. Methods return at once and never raise."""

    def answered(self, answer: Answer) -> None:
        """One image was answered."""
        ...

    def looked(self, answer: Answer) -> None:
        """The image just answered was asked for with the release's own thresholds and all classes."""
        ...

    def refused(self, code: str) -> None:
        """One image ended with the error of that ``code``; ``cancelled`` when its client went away."""
        ...

    def batch_started(self, release: ReleaseId, size: int, queued: int) -> None:
        """A batch of ``size`` >= 1 images took its lease; ``queued`` images keep waiting."""
        ...

    def batch_finished(self, release: ReleaseId, size: int, seconds: float, error: BaseException | None) -> None:
        """A batch ended after ``seconds`` on its lane; ``error`` is what broke all of it, if anything did."""
        ...

    def prepared(self, release: ReleaseId, seconds: float) -> None:
        """A release is loaded, warm and has passed the sight test."""
        ...

    def flipped(self, release: ReleaseId, generation: int) -> None:
        """``release`` serves from now on under ``generation``."""
        ...

    def held(self, seconds: float) -> None:
        """Batches start again after none could for ``seconds``, while something served."""
        ...

    def freed(self, release: ReleaseId) -> None:
        """The last lease of a retired release ended; its memory is being given back."""
        ...

    def compiled(self, release: ReleaseId, shape: Shape, error: BaseException | None) -> None:
        """The static form of ``shape`` was compiled in the background, or could not be."""
        ...


class NullObserver:
    """Counts nothing."""

    def answered(self, answer: Answer) -> None:
        """Ignore it."""

    def looked(self, answer: Answer) -> None:
        """Ignore it."""

    def refused(self, code: str) -> None:
        """Ignore it."""

    def batch_started(self, release: ReleaseId, size: int, queued: int) -> None:
        """Ignore it."""

    def batch_finished(self, release: ReleaseId, size: int, seconds: float, error: BaseException | None) -> None:
        """Ignore it."""

    def prepared(self, release: ReleaseId, seconds: float) -> None:
        """Ignore it."""

    def flipped(self, release: ReleaseId, generation: int) -> None:
        """Ignore it."""

    def held(self, seconds: float) -> None:
        """Ignore it."""

    def freed(self, release: ReleaseId) -> None:
        """Ignore it."""

    def compiled(self, release: ReleaseId, shape: Shape, error: BaseException | None) -> None:
        """Ignore it."""
