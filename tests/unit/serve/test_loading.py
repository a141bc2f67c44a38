"""Where a replica takes a release from, and what is told where it cannot be loaded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from member_world import Place, arrays

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.rollout.messages import Attempt, Directive, Failure, Target
from models.weights.manifest import ONNX
from serve.fake_engine import FakeEngine
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.loading import Loader, as_failure

if TYPE_CHECKING:
    from pathlib import Path

    from models.types import Release


def test_files_come_from_the_local_cache_when_the_actor_cannot_hand_them_out(tmp_path: Path) -> None:
    """The actor died with the shared memory: a copy on this machine is as good, for it is verified all the same."""

    async def story() -> None:
        place = Place(tmp_path)
        digest = place.actor.attempt.target.digest
        place.cache.put(digest, place.actor.stock.pop(digest))
        await place.member.start()
        assert place.engine.active == (digest, 4)

    run(story())


def _damage(folder: Path) -> None:
    (graph,) = folder.rglob(ONNX)
    graph.write_bytes(b"grape 1")


def test_a_damaged_copy_speaks_against_this_machine_and_not_the_release(tmp_path: Path) -> None:
    """A rejection would be for good and for the whole fleet."""

    async def story() -> None:
        place = Place(tmp_path)
        digest = place.actor.attempt.target.digest
        place.cache.put(digest, place.actor.stock.pop(digest))
        _damage(tmp_path)
        loader = Loader("m", place.engine, place.actor, place.cache, faults=FaultPoints(allowed=False), timeout_s=5.0)
        with pytest.raises(ReleaseFaultError, match=r"copy of version 1 of m .* is damaged") as told:
            await loader.load(place.actor.attempt)
        assert not as_failure(told.value).permanent

    run(story())


def test_a_release_that_is_loaded_needs_no_files(tmp_path: Path) -> None:
    """A rollback must not wait for a store, nor for hashing what has served a moment ago."""

    async def story() -> None:
        place = Place(tmp_path)
        attempt = place.actor.attempt
        engine = FakeEngine()
        loader = Loader("m", engine, place.actor, None, faults=FaultPoints(allowed=False), timeout_s=5.0)
        await loader.load(attempt)
        place.actor.stock.clear()
        await loader.load(attempt)
        assert (loader.loaded, engine.calls) == (attempt, ["prepare 1"])
        engine.discard(attempt.target.digest)
        with pytest.raises(ConnectionError):
            await loader.load(attempt)

    run(story())


def test_without_files_anywhere_the_start_fails_as_transient(tmp_path: Path) -> None:
    """Nothing to load is no fault of the release."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.stock.clear()
        with pytest.raises(ReleaseFaultError):
            await place.member.start()
        assert place.member.ready() == "m is not loaded yet"

    run(story())


class _BadEngine(FakeEngine):
    """An engine whose preparation raises, or never ends for None."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self._error = error

    async def prepare(self, release: Release) -> None:
        """Prepare version 1, fail on others."""
        if release.version == "1":
            await super().prepare(release)
        elif self._error is None:
            await asyncio.Event().wait()
        else:
            raise self._error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ReleaseRejectedError("it is blind", step="golden"), Failure("golden", "it is blind", permanent=True)),
        (ReleaseFaultError("disk", step="warm"), Failure("warm", "disk", permanent=False)),
        (MemoryError(), Failure("load", "there is not enough memory to load it", permanent=False)),
        (
            ZeroDivisionError("secret"),
            Failure("load", "loading failed for a reason that only the log tells", permanent=False),
        ),
        (None, Failure("load", "loading took longer than prepare_timeout_s allows", permanent=False)),
    ],
)
def test_every_failure_to_prepare_is_reported_in_words(
    tmp_path: Path, error: BaseException | None, failure: Failure
) -> None:
    """Domain errors keep their words; others are named without their insides; a hang becomes a failure."""

    async def story() -> None:
        place = Place(tmp_path, _BadEngine(error), prepare_timeout_s=30.0)
        digest, files = arrays(2)
        place.actor.stock[digest] = files
        await place.member.start()
        place.actor.directives = [Directive("prepare", 1, Attempt(5, 1, Target("2", digest, "p2")))]
        loop = asyncio.create_task(place.member.run())
        async with asyncio.timeout(100.0):
            while not place.actor.reports or place.actor.reports[-1].failure is None:  # noqa: ASYNC110 - time flies here
                await asyncio.sleep(0.05)
        assert place.actor.reports[-1].failure == failure
        assert place.actor.reports[-1].phase == "failed"
        assert place.engine.answering
        await place.member.stop()
        await asyncio.wait_for(loop, 5.0)
        assert place.actor.left

    run(story())


def test_files_that_are_not_what_the_ledger_names_are_refused(tmp_path: Path) -> None:
    """Shared memory and caches are verified like everything else."""

    async def story() -> None:
        place = Place(tmp_path)
        _, others = arrays(2)
        place.actor.stock[place.actor.attempt.target.digest] = others
        with pytest.raises(ReleaseRejectedError) as caught:
            await place.member.start()
        assert caught.value.step == "verify"

    run(story())
