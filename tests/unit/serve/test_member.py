"""The member's driver where the actor, its files or the engine fail; whole rollouts are in test_reconciler.py."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.errors import (
    LedgerError,
    RegistryError,
    ReleaseFaultError,
    ReleaseRejectedError,
    SteelyardError,
    UnavailableError,
    UnknownModelError,
)
from models.rollout.ledger import FakeLedger
from models.rollout.messages import Admission, Attempt, Directive, Failure, Join, PollReply, Refused, Report, Target
from models.types import Thresholds
from models.weights.cache import ReleaseCache
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from serve.fake_engine import FakeEngine
from serve.fake_time import run
from serve.member import Member
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from models.types import Release

Files = dict[str, "NDArray[np.uint8]"]


def _release(number: int) -> tuple[str, Files]:
    graph = f"graph {number}".encode()
    manifest = Manifest(
        model="m",
        task="detect",
        names=("a",),
        stride=32,
        imgsz=320,
        head="end2end",
        dynamic=True,
        thresholds=Thresholds(),
        files={ONNX: FileEntry(hashlib.sha256(graph).hexdigest(), len(graph))},
        source=Source("ab" * 32, 7, "pt"),
        libraries={},
        golden=(),
        metrics={},
        parity={},
    )
    data = {ONNX: graph, MANIFEST: manifest.to_bytes()}
    return manifest.digest, {name: np.frombuffer(text, np.uint8) for name, text in data.items()}


class FakeActor:
    """An actor that says what a test put down. Attributes are read on every call."""

    def __init__(self) -> None:
        """Name version 1 as committed in generation 4 and hand out its files."""
        digest, files = _release(1)
        self.attempt = Attempt(4, 1, Target("1", digest, "p1"))
        self.stock: dict[str, Files] = {digest: files}
        self.lost = False
        self.raises: list[SteelyardError] = []
        self.answer: Join | Refused | None = Join(self.attempt, 1, decided=True)
        self.verdicts: list[Admission] = []
        self.asked: list[tuple[int, Failure | None]] = []
        self.directives: list[Directive] = []
        self.reports: list[Report] = []
        self.left = False

    async def next(self, model: str, report: Report) -> PollReply:
        """Return the next directive, or nothing after five seconds."""
        assert model == "m"
        self._check()
        self.reports.append(report)
        if self.directives:
            return PollReply(self.directives.pop(0))
        await asyncio.sleep(5.0)
        return PollReply(None)

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """Return the answer, after raising all that is to be raised."""
        assert (model, replica) == ("m", "r")
        self._check()
        if self.raises:
            raise self.raises.pop(0)
        return self.answer

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Return the next verdict, ``admitted`` at the end."""
        assert (model, replica) == ("m", "r")
        self._check()
        self.asked.append((generation, failure))
        return self.verdicts.pop(0) if self.verdicts else "admitted"

    async def leave(self, model: str, replica: str) -> None:
        """Remember it."""
        assert (model, replica) == ("m", "r")
        self._check()
        self.left = True

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """Return the files, or fail as a dead owner of shared memory does."""
        assert (model, bool(version)) == ("m", True)
        self._check()
        if digest not in self.stock:
            msg = "the owner of the object has died"
            raise ConnectionError(msg)
        return self.stock[digest]

    def _check(self) -> None:
        if self.lost:
            msg = "the actor is dead"
            raise ConnectionError(msg)


class Place:
    """A member with its engine, actor and cache."""

    def __init__(self, folder: Path, engine: FakeEngine | None = None, **settings: Any) -> None:
        """Build it; call inside a running loop."""
        self.settings = Settings(home=folder, models=("m",), **settings)
        self.actor, self.engine = FakeActor(), engine or FakeEngine()
        self.cache = ReleaseCache(self.settings.cache)
        self.member = Member(
            "m", "r", self.engine, self.actor, FakeLedger(), self.cache, self.settings,
            clock=asyncio.get_running_loop().time,
        )  # fmt: skip


def test_it_starts_held_and_answers_only_once_it_is_admitted(tmp_path: Path) -> None:
    """No batch can start before the admission, whatever the web server does meanwhile."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.verdicts = ["retry", "retry"]
        await place.member.start()
        assert place.engine.calls == ["hold", "prepare 1", "flip 4", "resume"]
        assert place.actor.asked == [(4, None)] * 3
        assert place.cache.get(place.actor.attempt.target.digest) is not None

    run(story())


def test_a_stale_admission_loads_what_is_committed_now(tmp_path: Path) -> None:
    """The fleet moved on while it loaded: it loads again."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.verdicts = ["stale"]
        await place.member.start()
        assert [call for call in place.engine.calls if call.startswith("flip")] == ["flip 4", "flip 4"]

    run(story())


def test_files_come_from_the_local_cache_when_the_actor_cannot_hand_them_out(tmp_path: Path) -> None:
    """The actor died with the shared memory: a copy on this machine is as good, for it is verified all the same."""

    async def story() -> None:
        place = Place(tmp_path)
        digest = place.actor.attempt.target.digest
        place.cache.put(digest, place.actor.stock.pop(digest))
        await place.member.start()
        assert place.engine.active == (digest, 4)

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


def test_an_unreachable_actor_ends_the_start_with_a_clear_error(tmp_path: Path) -> None:
    """After the deadline the replica gives up, so that Serve can try elsewhere."""

    async def story() -> None:
        place = Place(tmp_path, prepare_timeout_s=5.0)
        place.actor.lost = True
        with pytest.raises(ReleaseFaultError, match="cannot be reached"):
            await place.member.start()

    run(story())


def test_a_refusal_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    """The replica raises what the fleet knows already."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.answer = Refused(Failure("golden", "it is blind", permanent=True))
        with pytest.raises(ReleaseRejectedError, match="it is blind") as caught:
            await place.member.start()
        assert caught.value.step == "golden"

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
        digest, files = _release(2)
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
        _, others = _release(2)
        place.actor.stock[place.actor.attempt.target.digest] = others
        with pytest.raises(ReleaseRejectedError) as caught:
            await place.member.start()
        assert caught.value.step == "verify"

    run(story())


def test_losing_the_actor_is_not_an_illness(tmp_path: Path) -> None:
    """It serves on, healthy and ready, and polls again when the actor is back."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.member.start()
        loop = asyncio.create_task(place.member.run())
        place.actor.lost = True
        await asyncio.sleep(100.0)
        assert (place.member.healthy(), place.member.ready()) == (None, None)
        place.actor.lost = False
        before = len(place.actor.reports)
        await asyncio.sleep(10.0)
        assert len(place.actor.reports) > before
        loop.cancel()

    run(story())


def test_stopping_without_an_actor_takes_no_longer_than_its_deadline(tmp_path: Path) -> None:
    """The farewell is a courtesy; a dead actor cannot hold up the shutdown."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.member.start()
        place.actor.lost = True
        async with asyncio.timeout(5.0):
            await place.member.stop()
        assert place.engine.failing is not None

    run(story())


@pytest.mark.parametrize("error", [UnknownModelError("no model named m"), ReleaseRejectedError("odd", step="verify")])
def test_an_answer_that_asking_again_cannot_change_ends_the_start_at_once(
    tmp_path: Path, error: SteelyardError
) -> None:
    """The actor was reached and said no: no two minutes of asking again."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.raises = [error]
        with pytest.raises(type(error), match=str(error)):
            await place.member.start()

    run(story())


def test_an_actor_that_says_try_again_is_asked_again(tmp_path: Path) -> None:
    """Its ledger or its registry may come back."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.raises = [UnavailableError("starting"), LedgerError("silent"), RegistryError("down")]
        await place.member.start()
        assert place.actor.raises == []

    run(story())
