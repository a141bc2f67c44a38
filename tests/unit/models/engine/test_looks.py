"""Which answers say what a version sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine_scenes import CONTEXT, PLAIN, png, serve

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine
from models.engine.observe import NullObserver
from models.types import DetectOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Answer, Release


class Looks(NullObserver):
    """Counts answers, and those of them that were looked at."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.answers = self.looks = 0

    def answered(self, answer: Answer) -> None:  # noqa: ARG002 - the protocol's
        """Count it."""
        self.answers += 1

    def looked(self, answer: Answer) -> None:  # noqa: ARG002 - likewise
        """Count it."""
        self.looks += 1


async def test_what_a_client_narrowed_says_nothing_of_the_version(make_release: Callable[..., Release]) -> None:
    """A filter or a threshold of the client's own leaves an answer out; one that equals the version's does not."""
    observer, release = Looks(), make_release()
    async with Engine(FakeBackend(), observer=observer) as engine:
        await serve(engine, release)
        own = release.thresholds
        for options in (
            PLAIN,
            DetectOptions(conf=own.conf),
            DetectOptions(conf=0.9),
            DetectOptions(max_det=1),
            DetectOptions(classes=frozenset({0})),
        ):
            await engine.detect(png(1), options, CONTEXT)
    assert (observer.answers, observer.looks) == (5, 2)
