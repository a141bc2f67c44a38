"""One replica without Ray: real engines on the fake backend, fake members and a fake fleet."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine
from models.errors import ReleaseRejectedError, UnavailableError
from models.types import Contract, Release, Thresholds
from models.weights.fake_registry import FakeRegistry
from serve.replica import REFRESH_S, IdleClock, Replica


class FakeTime:
    """A clock; sleeping ends when a test moves it."""

    def __init__(self) -> None:
        """Start at zero."""
        self.now = 0.0
        self.sleepers: list[tuple[float, asyncio.Event]] = []

    def clock(self) -> float:
        """Return the seconds so far."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on."""
        woken = asyncio.Event()
        self.sleepers.append((self.now + seconds, woken))
        await woken.wait()

    async def advance(self, seconds: float) -> None:
        """Let time pass and everyone who is due act."""
        self.now += seconds
        due = [each for each in self.sleepers if each[0] <= self.now]
        self.sleepers = [each for each in self.sleepers if each[0] > self.now]
        for _, woken in due:
            woken.set()
        await asyncio.sleep(0.01)


def release(model: str) -> Release:
    """Return a release that the fake backend loads."""
    contract = Contract(task="detect", names=("apple", "bread"), stride=32, imgsz=64, head="end2end")
    return Release(model, "1", "0" * 64, contract, Thresholds(), files={})


class FakeMember:
    """Loads one release at start and then does nothing."""

    def __init__(self, engine: Engine, model: str) -> None:
        """Serve ``model``'s release 1 once started."""
        self._engine = engine
        self._model = model
        self.refuse: Exception | None = None
        self.sick: str | None = None
        self.doubt: str | None = None
        self.end = asyncio.Event()
        self.left = False

    async def start(self) -> None:
        """Load and flip, or refuse."""
        if self.refuse is not None:
            raise self.refuse
        await self._engine.prepare(release(self._model))
        self._engine.flip("0" * 64, 1)

    async def run(self) -> None:
        """Go on until ``end`` is set."""
        await self.end.wait()

    async def stop(self) -> None:
        """Note that it left."""
        self.left = True

    def healthy(self) -> str | None:
        """Return ``sick``."""
        return self.sick

    def ready(self) -> str | None:
        """Return ``doubt``."""
        return self.doubt


class FakeFleet:
    """Answers with what it was asked."""

    async def status(self, model: str) -> dict[str, object]:
        """Return the model."""
        return {"model": model}

    async def promote(self, model: str, version: str) -> dict[str, object]:
        """Return the version as desired."""
        return {"model": model, "desired": version}

    async def rollback(self, model: str) -> dict[str, object]:
        """Return a fixed version as desired."""
        return {"model": model, "desired": "1"}

    async def arm(self, point: str, action: str) -> None:
        """Arm nothing."""


class Parts:
    """A replica of two models and what it is made of."""

    def __init__(self) -> None:
        """Make everything; start nothing."""
        self.time = FakeTime()
        self.backends = {model: FakeBackend() for model in ("checkout", "street")}
        self.engines = {model: Engine(backend) for model, backend in self.backends.items()}
        self.members = {model: FakeMember(engine, model) for model, engine in self.engines.items()}
        self.idle = {model: IdleClock(self.time.clock) for model in self.engines}
        self.registry = FakeRegistry()
        self.refreshed = 0
        self.replica = Replica(
            self.engines,
            self.members,
            self.idle,
            fleet=FakeFleet(),
            registry=self.registry,
            exposition=self.exposition,
            refresh=self.refresh,
            idle_check_s=60.0,
            sleep=self.time.sleep,
        )

    async def exposition(self) -> bytes:
        """Return a node's metrics."""
        return b"# HELP x\n"

    def refresh(self) -> None:
        """Count the call."""
        self.refreshed += 1


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    """Return the parts of a replica and stop it afterwards."""
    made = Parts()
    yield made
    await made.replica.stop()


async def test_a_replica_is_ready_once_every_model_serves(parts: Parts) -> None:
    """Before the start it says so, afterwards it takes requests, stopped it refuses them."""
    assert parts.replica.readiness() == "the replica is starting"
    await parts.replica.start()
    assert parts.replica.readiness() is None
    assert parts.replica.failure() is None
    assert list(parts.replica.engines) == ["checkout", "street"]
    await parts.replica.stop()
    assert parts.replica.readiness() == "the replica is stopping"
    assert all(member.left for member in parts.members.values())


async def test_a_release_that_may_not_serve_keeps_the_replica_from_starting(parts: Parts) -> None:
    """The reason comes out, and what had started is closed."""
    parts.members["street"].refuse = ReleaseRejectedError("it finds no box", step="golden")
    with pytest.raises(ReleaseRejectedError, match="it finds no box"):
        await parts.replica.start()
    assert parts.members["checkout"].left
    assert parts.replica.readiness() == "the replica is stopping"


async def test_a_dead_member_loop_fails_the_health_check(parts: Parts) -> None:
    """A loop that ended without a sound would hold up every rollout from then on."""
    await parts.replica.start()
    parts.members["street"].end.set()
    await asyncio.sleep(0.01)
    assert parts.replica.failure() == "the rollout member of street has stopped"


async def test_doubt_is_no_reason_to_replace_a_replica(parts: Parts) -> None:
    """A member that cannot learn what stands takes no requests, and goes on when it can."""
    await parts.replica.start()
    parts.members["checkout"].doubt = "in doubt"
    assert parts.replica.readiness() == "checkout: in doubt"
    assert parts.replica.failure() is None
    parts.members["checkout"].sick = "the loop stands still"
    assert parts.replica.failure() == "checkout: the loop stands still"


async def test_an_idle_engine_that_no_longer_answers_is_found(parts: Parts) -> None:
    """After a minute without a request the engine must prove itself; one that cannot is to be replaced."""
    await parts.replica.start()
    looks = 0

    async def blind() -> None:
        nonlocal looks
        looks += 1
        from models.errors import BackendError  # noqa: PLC0415 - used by this double only

        msg = "it finds no box on the canary image"
        raise BackendError(msg)

    parts.engines["checkout"].check_sight = blind  # type: ignore[method-assign]
    await parts.time.advance(59.0)
    parts.idle["checkout"].touch()
    await parts.time.advance(6.0)
    assert looks == 0
    for _ in range(12):
        await parts.time.advance(6.0)
    assert looks >= 1
    assert parts.replica.failure() == "checkout: it finds no box on the canary image"


async def test_gauges_are_refreshed_while_the_replica_lives(parts: Parts) -> None:
    """Ray forgets a gauge that nobody sets."""
    await parts.replica.start()
    await asyncio.sleep(0)
    before = parts.refreshed
    for _ in range(3):
        await parts.time.advance(REFRESH_S)
    assert parts.refreshed == before + 3


async def test_the_edge_reaches_fleet_registry_and_metrics(parts: Parts) -> None:
    """Each question goes where its answer is."""
    assert await parts.replica.status("checkout") == {"model": "checkout"}
    assert await parts.replica.promote("checkout", "2") == {"model": "checkout", "desired": "2"}
    assert await parts.replica.rollback("checkout") == {"model": "checkout", "desired": "1"}
    assert await parts.replica.metrics() == b"# HELP x\n"


async def test_a_registry_that_does_not_answer_is_not_waited_for(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route comes back with an error that says to ask again."""
    answer = asyncio.Event()

    async def slow(*_: Any) -> None:
        await answer.wait()

    with monkeypatch.context() as patched:
        patched.setattr("serve.replica.asyncio.to_thread", slow)
        patched.setattr("serve.replica.REGISTRY_DEADLINE_S", 0.01)
        with pytest.raises(UnavailableError, match="did not answer in time"):
            await parts.replica.versions("checkout")
