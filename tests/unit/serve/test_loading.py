"""Where a replica takes a release from, and what is told where it cannot be loaded."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from member_world import FakeActor, Place, arrays

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.rollout.messages import Attempt, Directive, Failure, Target
from models.weights.keys import KeyFolder
from models.weights.manifest import ONNX
from serve import loading
from serve.fake_engine import FakeEngine
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.loading import Loader, as_failure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

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


def _loader(place: Place, *, actor: FakeActor | None = None, cached: bool = True) -> Loader:
    """Return a loader into the place's engine, from ``actor`` or the place's, with its cache or without one."""
    cache = place.cache if cached else None
    faults = FaultPoints(allowed=False)
    return Loader("m", place.engine, actor or place.actor, cache, rule=place.rule, faults=faults, timeout_s=60.0)


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
        loader = _loader(place)
        with pytest.raises(ReleaseFaultError, match=r"copy of version 1 of m .* is damaged") as told:
            await loader.load(place.actor.attempt)
        assert not as_failure(told.value).permanent

    run(story())


def test_a_release_that_is_loaded_needs_no_files(tmp_path: Path) -> None:
    """A rollback must not wait for a store, nor for hashing what has served a moment ago."""

    async def story() -> None:
        place = Place(tmp_path)
        attempt = place.actor.attempt
        engine = place.engine
        loader = _loader(place, cached=False)
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


def _sign(place: Place, version: str) -> str:
    """Return a trusted key's signature of the release that is committed, under ``version``."""
    folder = KeyFolder(place.settings.keys_folder)
    if folder.signing() is None:
        folder.new("mine")
    found = folder.signing()
    assert found is not None
    return found[1].sign("m", version, place.actor.attempt.target.digest)


def test_a_replica_verifies_the_signature_itself(tmp_path: Path) -> None:
    """It trusts no actor: a moved signature is refused before the engine sees a byte, a sound one is kept."""

    async def story() -> None:
        place = Place(tmp_path)
        digest = place.actor.attempt.target.digest
        place.actor.signatures["1"] = _sign(place, "2")
        with pytest.raises(ReleaseRejectedError, match="does not fit") as told:
            await place.member.start()
        assert told.value.step == "verify"
        assert place.engine.calls == ["hold"]
        place.actor.signatures["1"] = _sign(place, "1")
        await place.member.start()
        assert place.engine.active == (digest, 4)
        assert place.cache.signatures.get("m", "1", digest) == _sign(place, "1")

    run(story())


@pytest.mark.parametrize("kept", ["sound", "moved", "none"])
def test_a_cached_release_is_verified_without_the_actor(tmp_path: Path, kept: str) -> None:
    """At a cold start only what lies beside the cached release tells who signed it."""

    async def story() -> None:
        place = Place(tmp_path, require_signed=True)
        digest = place.actor.attempt.target.digest
        place.cache.put(digest, place.actor.stock.pop(digest))
        sound = _sign(place, "1")
        if kept != "none":
            place.cache.signatures.keep("m", "1", digest, sound if kept == "sound" else _sign(place, "2"))
        loader = _loader(place, actor=_Mute())
        if kept == "sound":
            await loader.load(place.actor.attempt)
            assert place.engine.calls == ["prepare 1"]
            return
        with pytest.raises(ReleaseRejectedError if kept == "moved" else ConnectionError):
            await loader.load(place.actor.attempt)
        assert place.engine.calls == []

    run(story())


class _Mute(FakeActor):
    """An actor that hands out neither files nor signatures."""

    async def signature(self, model: str, version: str, digest: str) -> str:
        """Fail as a dead actor does."""
        raise ConnectionError(model, version, digest)

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """Fail as a dead actor does."""
        raise ConnectionError(model, version, digest)


def test_a_resident_release_of_a_distrusted_key_does_not_come_back(tmp_path: Path) -> None:
    """A rollback obeys the rule, without hashing anything."""

    async def story() -> None:
        place = Place(tmp_path)
        attempt = place.actor.attempt
        place.actor.signatures["1"] = _sign(place, "1")
        loader = _loader(place, cached=False)
        await loader.load(attempt)
        place.actor.stock.clear()
        await loader.load(attempt)
        KeyFolder(place.settings.keys_folder).distrust("mine")
        with pytest.raises(ReleaseRejectedError, match="not trusted here"):
            await loader.load(attempt)
        assert loader.loaded is None
        assert place.engine.calls == ["prepare 1"]

    run(story())


def test_hashing_and_writing_a_release_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four replicas that hash at once would keep every answer of the machine waiting; who joins answers nothing yet."""

    async def story() -> None:
        place = Place(tmp_path)
        lowered: list[int] = []
        ran: list[int] = []
        monkeypatch.setattr("serve.loading.give_way", lambda: lowered.append(threading.get_native_id()))
        opening, keeping = loading.open_release, place.cache.put
        monkeypatch.setattr(
            loading, "open_release", lambda *a, **k: (ran.append(threading.get_native_id()), opening(*a, **k))[1]
        )
        monkeypatch.setattr(
            place.cache, "put", lambda *a, **k: (ran.append(threading.get_native_id()), keeping(*a, **k))[1]
        )
        loader = _loader(place)
        await loader.load(place.actor.attempt, timed=True)
        assert (len(lowered), ran) == (1, lowered * 2)
        place.engine.discard(place.actor.attempt.target.digest)
        await loader.load(place.actor.attempt)
        assert len(lowered) == 1

    run(story())


def test_a_disk_that_hangs_holds_up_no_later_load(tmp_path: Path) -> None:
    """A read that never returned keeps its own thread; the next load has the files from the actor and needs no disk."""

    async def story() -> None:
        place = Place(tmp_path)
        attempt = place.actor.attempt
        stock = dict(place.actor.stock)
        place.actor.stock.clear()
        reads, ends = threading.Event(), threading.Event()

        def hang(*_: object) -> None:
            reads.set()
            ends.wait(30.0)

        place.cache.open = hang  # type: ignore[method-assign, assignment]
        loader = _loader(place)
        try:
            hanging = asyncio.ensure_future(loader.load(attempt))
            assert await asyncio.to_thread(reads.wait, 20.0)
            hanging.cancel()
            await asyncio.wait([hanging])
            place.actor.stock.update(stock)
            await loader.load(attempt)
        finally:
            ends.set()
        assert loader.loaded == attempt

    run(story())
