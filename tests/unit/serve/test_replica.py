"""One replica without Ray: real engines on the fake backend, fake members and a fake fleet."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine
from models.errors import ReleaseRejectedError, UnavailableError, UnknownModelError
from models.rollout.order import PLAIN, Order
from models.types import Contract, Release, Thresholds
from models.weights.fake_registry import FakeRegistry
from models.weights.registry import VersionInfo
from serve.replica import MOST_REGISTRY_READS, REGISTRY_THREADS, IdleClock, Replica
from serve.service import OPERATOR
from serve.webhook import Delivery


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
        self.entered, self.running, self.gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def start(self) -> None:
        """Load and flip, or refuse; waits at ``gate``."""
        self.entered.set()
        await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        await self._engine.prepare(release(self._model))
        self._engine.flip("0" * 64, 1)

    async def run(self) -> None:
        """Go on until ``end`` is set."""
        self.running.set()
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

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN, who: str = OPERATOR
    ) -> dict[str, object]:
        """Return the version as desired, and what came with it where that is anything."""
        assert who == OPERATOR
        asked = {} if order == PLAIN else {"reason": reason, "order": order}
        return {"model": model, "desired": version, **asked}

    async def rollback(self, model: str, *, who: str = OPERATOR) -> dict[str, object]:
        """Return a fixed version as desired."""
        assert who == OPERATOR
        return {"model": model, "desired": "1"}

    async def hint(self, model: str, delivery: Delivery) -> bool:
        """Return True for one delivery of one model."""
        return (model, delivery) == ("street", Delivery("a", 1.0))

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
        self.refreshed = 0
        self.replica = self.make(FakeRegistry())

    def make(self, registry: FakeRegistry) -> Replica:
        """Return a replica of these parts that reads ``registry``."""
        return Replica(
            self.engines,
            self.members,
            self.idle,
            fleet=FakeFleet(),
            registry=registry,
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


async def test_further_upkeep_goes_on_with_the_replica(parts: Parts) -> None:
    """It starts and stops with the replica, and one that ends is told like any other."""
    running, end = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        running.set()
        await end.wait()

    replica = Replica(
        parts.engines,
        parts.members,
        parts.idle,
        fleet=FakeFleet(),
        registry=FakeRegistry(),
        exposition=parts.exposition,
        refresh=parts.refresh,
        idle_check_s=60.0,
        upkeep={"the watch": watch},
        sleep=parts.time.sleep,
    )
    await replica.start()
    await asyncio.wait_for(running.wait(), 30)
    assert replica.failure() is None
    end.set()
    await asyncio.sleep(0.01)
    assert replica.failure() == "the watch has stopped"
    await replica.stop()


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


async def test_metrics_are_told_once_a_second_while_the_replica_lives(parts: Parts) -> None:
    """Ray forgets a gauge that nobody sets, and telling it costs."""
    await parts.replica.start()
    await asyncio.sleep(0)
    before = parts.refreshed
    for _ in range(12):
        await parts.time.advance(0.25)
    assert parts.refreshed == before + 3


async def test_the_edge_reaches_fleet_registry_and_metrics(parts: Parts) -> None:
    """Each question goes where its answer is."""
    assert await parts.replica.status("checkout") == {"model": "checkout"}
    assert await parts.replica.promote("checkout", "2") == {"model": "checkout", "desired": "2"}
    order = Order(force="why")
    forced = await parts.replica.promote("checkout", "2", reason="why", order=order)
    assert (forced["reason"], forced["order"]) == ("why", order)
    assert await parts.replica.rollback("checkout") == {"model": "checkout", "desired": "1"}
    assert await parts.replica.hint("street", Delivery("a", 1.0))
    assert not await parts.replica.hint("street", Delivery("b", 1.0))
    assert await parts.replica.metrics() == b"# HELP x\n"


async def test_a_member_follows_its_fleet_while_the_next_model_is_still_prepared(parts: Parts) -> None:
    """From its admission on a fleet's rollouts wait for the member; the next model's plan is measured undisturbed."""
    first, second = parts.members["checkout"], parts.members["street"]
    second.gate.clear()
    starting = asyncio.create_task(parts.replica.start())
    await asyncio.wait_for(asyncio.gather(first.running.wait(), second.entered.wait()), 10)
    assert not second.running.is_set()
    second.gate.set()
    await asyncio.wait_for(starting, 10)
    await asyncio.wait_for(second.running.wait(), 10)


async def test_models_are_prepared_one_after_another(parts: Parts) -> None:
    """Plans that are measured at once would be measured against each other."""
    first, second = parts.members["checkout"], parts.members["street"]
    first.gate.clear()
    starting = asyncio.create_task(parts.replica.start())
    await asyncio.wait_for(first.entered.wait(), 10)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.entered.is_set()
    first.gate.set()
    await asyncio.wait_for(starting, 10)


class BlackHole(FakeRegistry):
    """A registry whose answers do not come before ``open`` is set."""

    def __init__(self) -> None:
        """Hang from the start."""
        super().__init__()
        self.open = threading.Event()
        self.asked = 0

    def versions(self, model: str) -> list[VersionInfo]:
        """Wait, then answer."""
        self.asked += 1
        assert self.open.wait(30)
        return super().versions(model)


async def test_a_registry_that_hangs_takes_no_thread_of_the_requests(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two reads may hang; further ones are refused at once, and decoding goes on beside them."""
    monkeypatch.setattr("serve.replica.REGISTRY_DEADLINE_S", 0.05)
    hole = BlackHole()
    replica = parts.make(hole)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    try:
        answers = await asyncio.gather(*(replica.versions("checkout") for _ in range(8)), return_exceptions=True)
        assert {str(answer) for answer in answers} == {"The registry did not answer in time; ask again"}
        assert hole.asked == REGISTRY_THREADS
        with pytest.raises(UnavailableError, match="does not answer now"):
            await replica.versions("checkout")
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "decoded"), 10) == "decoded"
        await asyncio.wait_for(replica.stop(), 10)
        assert hole.asked == REGISTRY_THREADS
        with pytest.raises(UnavailableError):
            await replica.versions("checkout")
    finally:
        hole.open.set()


async def test_the_registry_is_read_again_once_it_answers(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that come back take the next reads."""
    hole = BlackHole()
    replica = parts.make(hole)
    with monkeypatch.context() as patched:
        patched.setattr("serve.replica.REGISTRY_DEADLINE_S", 0.05)
        await asyncio.gather(*(replica.versions("checkout") for _ in range(2)), return_exceptions=True)
    hole.open.set()
    async with asyncio.timeout(10):
        while True:
            try:
                await replica.versions("checkout")
            except UnavailableError:
                await asyncio.sleep(0.01)
            except UnknownModelError:
                break
    await replica.stop()


async def test_reads_that_wait_are_bounded(parts: Parts) -> None:
    """A crowd that asks while the registry hangs is turned away, not kept."""
    hole = BlackHole()
    replica = parts.make(hole)
    crowd = [asyncio.create_task(replica.versions("checkout")) for _ in range(MOST_REGISTRY_READS)]
    try:
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="does not answer now"):
            await replica.versions("checkout")
    finally:
        hole.open.set()
        await asyncio.gather(*crowd, return_exceptions=True)
    await replica.stop()
