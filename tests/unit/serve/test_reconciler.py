"""The whole rollout without Ray: reconciler, members, ledger, registry, cache and disk in one process."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.errors import (
    RegistryError,
    ReleaseFaultError,
    ReleaseRejectedError,
    UnknownVersionError,
)
from models.rollout import ledger as rules
from models.rollout.ledger import FakeLedger
from models.rollout.messages import Join
from models.rollout.state import Timing
from models.types import Thresholds
from models.weights import registry as tags
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from serve.audit import Audit
from serve.depot import Depot
from serve.fake_engine import FakeEngine
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.member import Member
from serve.reconciler import Parts, Reconciler
from serve.rollout import prune
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.rollout.messages import Admission, Failure, PollReply, Refused, Report

MODEL = "m"


def _register(registry: FakeRegistry, folder: Path, number: int) -> str:
    folder.mkdir()
    graph = f"graph {number}".encode()
    (folder / ONNX).write_bytes(graph)
    manifest = Manifest(
        model=MODEL,
        task="detect",
        names=("a", "b"),
        stride=32,
        imgsz=320,
        head="end2end",
        dynamic=True,
        thresholds=Thresholds(),
        files={ONNX: FileEntry(hashlib.sha256(graph).hexdigest(), len(graph))},
        source=Source(f"{number:064d}", 7, "pt"),
        libraries={},
        golden=(),
        metrics={},
        parity={},
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    labels = {tags.DIGEST_TAG: manifest.digest, tags.SOURCE_TAG: f"{number}", tags.PROMOTABLE_TAG: "true"}
    registry.create_version(MODEL, folder, tags=labels, metrics={})
    return manifest.digest


class Fleet:
    """One service: a registry with versions 1 to 3, version 1 promoted; an actor; members with fake engines."""

    def __init__(self, folder: Path) -> None:
        """Prepare everything; nothing runs yet."""
        self.registry = FakeRegistry()
        self.digests = {str(n): _register(self.registry, folder / f"v{n}", n) for n in (1, 2, 3)}
        self.registry.promote(MODEL, "1", promotion="first", reason="test")
        self.settings = Settings(home=folder / "home", models=(MODEL,), poll_interval_s=1.0, allow_fault_injection=True)
        self.cache = ReleaseCache(self.settings.cache)
        self.depot: Depot | None = None
        self.ledger = FakeLedger()
        self.faults = FaultPoints(allowed=True)
        self.names: set[str] = set()
        self.members: dict[str, Member] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.loops: dict[str, asyncio.Task[None]] = {}
        self.reconciler: Reconciler | None = None
        self.lives = 0
        self.deposed = 0

    async def begin(self) -> None:
        """Begin a life of the actor."""
        self.lives += 1
        loop = asyncio.get_running_loop()
        self.depot = depot = Depot(
            self.registry, self.cache, share=dict, in_thread=_at_once, in_registry_thread=_at_once, faults=self.faults
        )
        self.reconciler = Reconciler(
            MODEL,
            Parts(
                registry=self.registry,
                depot=depot,
                store=CommittedStore(self.settings.root),
                ledger=self.ledger,
                audit=Audit(self.settings.root / "audit"),
                faults=self.faults,
                names=lambda: frozenset(self.names),
                in_thread=_at_once,
                in_registry_thread=_at_once,
                depose=self._depose,
                tidy=self._tidy,
                timing=Timing(),
                poll_interval_s=1.0,
                prepare_timeout_s=60.0,
                clock=loop.time,
            ),
        )
        number = await rules.run(rules.claim_incarnation(f"life {self.lives}"), self.ledger)
        await self.reconciler.begin(number)

    async def crash(self) -> None:
        """End the actor as a kill would; its callers get errors until the next ``begin``."""
        dead, self.reconciler = self.reconciler, None
        assert dead is not None
        await dead.stop()

    async def start(self, name: str, **refuse: ReleaseRejectedError | ReleaseFaultError) -> FakeEngine:
        """Start a replica; raises what its start raises. refuse: version -> the error that preparing it raises."""
        engine = FakeEngine({self.digests[version[1:]]: error for version, error in refuse.items()})
        clock = asyncio.get_running_loop().time
        member = Member(
            MODEL, name, engine, self, self.ledger, ReleaseCache(self.settings.cache), self.settings, clock=clock
        )
        await member.start()
        self.members[name], self.engines[name] = member, engine
        self.names.add(name)
        self.loops[name] = asyncio.create_task(member.run())
        return engine

    async def kill(self, name: str) -> None:
        """End a replica as a kill would."""
        self.loops[name].cancel()
        self.names.discard(name)
        del self.members[name], self.engines[name]

    async def until(self, true: Callable[[], bool], within_s: float = 60.0) -> None:
        """Wait until ``true``, in the loop's time."""
        async with asyncio.timeout(within_s):
            while not true():  # noqa: ASYNC110 - time flies here, and what changes is everywhere
                await asyncio.sleep(0.01)

    def all_on(self, version: str) -> Callable[[], bool]:
        """Return the question whether every replica answers with ``version`` and the actor knows it."""

        def true() -> bool:
            wanted = self.digests[version]
            there = [e.answering and e.active is not None and e.active[0] == wanted for e in self.engines.values()]
            return self.reconciler is not None and all(there) and self.actor.status()["serving"] == version

        return true

    @property
    def actor(self) -> Reconciler:
        """Return the actor; raises where it is dead."""
        if self.reconciler is None:
            msg = "the actor is dead"
            raise ConnectionError(msg)
        return self.reconciler

    def audit(self) -> list[dict[str, Any]]:
        """Return the audit, oldest first."""
        path = self.settings.root / "audit" / "rollout.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _tidy(self) -> None:
        assert self.depot is not None
        self.depot.keep_only(self.actor.wanted)
        prune(self.cache, CommittedStore(self.settings.root), self.actor.wanted)

    def _depose(self) -> None:
        self.deposed += 1

    # ActorPort

    async def next(self, model: str, report: Report) -> PollReply:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.next(report)

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.join(replica)

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.admit(replica, generation, failure)

    async def leave(self, model: str, replica: str) -> None:
        """See ActorPort."""
        assert model == MODEL
        self.actor.leave(replica)

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, Any]:
        """See ActorPort."""
        assert model == MODEL
        files: Mapping[str, Any] = await self.actor.files(version, digest)
        return files


async def _at_once(call: Callable[..., Any], *args: object, **named: object) -> Any:
    return call(*args, **named)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Return a service that has not begun."""
    return Fleet(tmp_path)


def test_two_replicas_start_roll_forward_and_back(fleet: Fleet) -> None:
    """Start on the promoted version, promote, roll back: both flip, the alias follows, it is written down."""

    async def story() -> None:
        await fleet.begin()
        await asyncio.gather(fleet.start("a"), fleet.start("b"))
        await fleet.until(fleet.all_on("1"))
        await fleet.actor.promote("2", "better", "somebody")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.roll_back(20.0, "somebody")
        assert fleet.actor.status()["serving"] == "1"
        await fleet.until(fleet.all_on("1"))
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await fleet.until(lambda: fleet.registry.serving.get(MODEL, (0, "", ""))[1] == "1")
        await asyncio.sleep(10.0)
        assert fleet.all_on("1")()
        assert [(e["action"], e["result"], e["to"]["version"]) for e in fleet.audit()] == [
            ("roll", "committed", "1"),
            ("promote", "accepted", "2"),
            ("roll", "committed", "2"),
            ("rollback", "accepted", "1"),
            ("roll", "committed", "1"),
        ]
        record = CommittedStore(fleet.settings.root).load(MODEL)
        assert record is not None
        assert (record.version, record.previous_version, record.pin) == ("1", None, None)
        await fleet.crash()

    run(story())


def test_a_second_rollback_does_not_bring_the_bad_version_back(fleet: Fleet) -> None:
    """While it is under way or not yet in the alias it is the same rollback; later it is refused; promoting works."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        fleet.faults.arm("actor.before_alias", "delay:5")
        await asyncio.gather(fleet.actor.roll_back(20.0, "x"), fleet.actor.roll_back(20.0, "x"))
        generation = fleet.actor.status()["generation"]
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(10.0)
        with pytest.raises(ReleaseRejectedError, match="no earlier version of m to return to: version 1") as caught:
            await fleet.actor.roll_back(20.0, "x")
        assert caught.value.step == "rollback"
        assert fleet.all_on("1")()
        assert fleet.actor.status()["generation"] == generation == 3
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_refused_release_is_let_go_at_once(fleet: Fleet) -> None:
    """Neither memory nor disk keeps it until the next commit; what serves, and what served before, stays."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a", v3=ReleaseRejectedError("it is blind", step="golden"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.promote("3", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(1.0)
        assert fleet.depot is not None
        assert fleet.depot.held == {fleet.digests["1"], fleet.digests["2"]}
        kept = {path.name for path in (fleet.settings.cache / "releases").iterdir()}
        assert kept == {fleet.digests["1"], fleet.digests["2"]}
        await fleet.crash()

    run(story())


def test_a_release_in_backoff_and_the_last_good_of_other_models_are_kept(fleet: Fleet) -> None:
    """What is tried again soon is not fetched again, and a model that is not served now can come back."""

    async def story() -> None:
        stranger = "ef" * 32
        fleet.cache.put(stranger, {"f": np.zeros(1, np.uint8)})
        CommittedStore(fleet.settings.root).save(Committed("other", 3, "1", stranger))
        await fleet.begin()
        await fleet.start("a", v2=ReleaseFaultError("no memory", step="load"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(0.1)
        assert fleet.depot is not None
        assert fleet.digests["2"] in fleet.depot.held
        assert fleet.cache.get(stranger) is not None
        await fleet.crash()

    run(story())


def test_a_cold_start_survives_a_passing_failure_of_the_last_good_release(fleet: Fleet) -> None:
    """The registry is down and the first replica runs out of memory: the release is tried again, not given up."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.kill("a")
        await asyncio.sleep(1.0)
        await fleet.crash()
        fleet.ledger.data.clear()
        fleet.registry.down = True
        await fleet.begin()
        with pytest.raises(ReleaseFaultError, match="no memory"):
            await fleet.start("b", v1=ReleaseFaultError("no memory", step="load"))
        found = fleet.actor.status()
        assert (found["state"], found["step"], found["reason"]) == ("starting", "load", "no memory")
        await asyncio.wait_for(fleet.start("c"), 60.0)
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_first_release_that_kills_every_replica_is_refused(fleet: Fleet) -> None:
    """Processes that vanish while they load it: three are enough."""

    async def story() -> None:
        await fleet.begin()
        for name in "abc":
            fleet.names.add(name)
            async with asyncio.timeout(30.0):
                while not isinstance(await fleet.actor.join(name), Join):
                    pass
            fleet.names.discard(name)
            await asyncio.sleep(2.0)
        found = fleet.actor.status()
        assert (found["state"], found["step"]) == ("rejected", "load")
        assert found["reason"] == "3 replicas died while they prepared it"
        await fleet.crash()

    run(story())


def test_a_rollback_with_the_registry_down_stands_until_a_newer_promotion(fleet: Fleet) -> None:
    """The flip does not wait for the registry; no poll brings the bad version back; a restart does not either."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        fleet.registry.down = True
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()
        await fleet.begin()
        await asyncio.sleep(30.0)
        assert fleet.all_on("1")()
        fleet.registry.down = False
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(10.0)
        assert fleet.all_on("1")()
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("step", ["golden", "load"])
def test_a_version_that_one_replica_refuses_serves_nowhere(fleet: Fleet, step: str) -> None:
    """One blind replica is enough; the version is not tried again until it is promoted again."""

    async def story() -> None:
        await fleet.begin()
        blind = await fleet.start("a", v2=ReleaseRejectedError("it is blind", step=step))
        other = await fleet.start("b")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(120.0)
        found = fleet.actor.status()
        assert (found["step"], found["reason"], found["serving"]) == (step, "it is blind", "1")
        assert fleet.all_on("1")()
        assert blind.calls.count("prepare 2") == 1
        assert other.candidate is None
        del blind.refuse[fleet.digests["2"]]
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_a_transient_failure_is_tried_again(fleet: Fleet) -> None:
    """No memory now is not no memory for ever."""

    async def story() -> None:
        await fleet.begin()
        engine = await fleet.start("a", v2=ReleaseFaultError("no memory", step="load"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: engine.calls.count("prepare 2") == 3)
        engine.refuse.clear()
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_version_is_refused_at_verify(fleet: Fleet, damage: Callable[[bytes], bytes]) -> None:
    """A byte lost or a bit flipped in the store: refused before any replica hears of it."""

    async def story() -> None:
        stored = fleet.registry.files[MODEL, "2"]
        stored[ONNX] = damage(stored[ONNX])
        await fleet.begin()
        engine = await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        assert fleet.actor.status()["step"] == "verify"
        await asyncio.sleep(30.0)
        assert "prepare 2" not in engine.calls
        assert [e["result"] for e in fleet.audit() if e["to"]["version"] == "2"] == ["accepted", "rejected"]
        await fleet.crash()

    run(story())


def test_a_version_without_its_ready_tag_does_not_exist(fleet: Fleet) -> None:
    """An alias moved by hand to an unfinished version is refused; it is taken as soon as it is ready."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        fleet.registry.set_state(MODEL, "2", "")
        with pytest.raises(ReleaseRejectedError):
            await fleet.actor.promote("2", "", "x")
        fleet.registry.promote(MODEL, "2", promotion="by hand", reason="")
        fleet.actor.hint()
        await fleet.until(lambda: fleet.actor.status()["reason"] == "version 2 is not ready")
        fleet.registry.set_state(MODEL, "2", "ready")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_the_registry_going_away_stops_nothing(fleet: Fleet) -> None:
    """Serving goes on; a new replica starts from the cache; the actor restarts; people are told why promote fails."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        fleet.registry.down = True
        await asyncio.sleep(600.0)
        with pytest.raises(RegistryError):
            await fleet.actor.promote("2", "", "x")
        await fleet.start("b")
        await fleet.crash()
        await fleet.begin()
        await fleet.start("c")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_new_cluster_starts_on_the_last_committed_release_without_a_registry(fleet: Fleet) -> None:
    """Everything in memory and the ledger is gone: the record and the cache are enough, under a higher generation."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        before = fleet.actor.status()["generation"]
        await fleet.kill("a")
        await asyncio.sleep(1.0)
        await fleet.crash()
        fleet.ledger.data.clear()
        fleet.registry.down = True
        await fleet.begin()
        engine = await fleet.start("b")
        assert engine.active == (fleet.digests["2"], before + 1)
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_damaged_cache_is_fetched_anew(fleet: Fleet) -> None:
    """The cached copy of what served last is verified, too; a damaged one is replaced from the registry."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.kill("a")
        await fleet.crash()
        fleet.ledger.data.clear()
        (path,) = fleet.settings.cache.rglob(ONNX)
        path.write_bytes(b"other bytes")
        await fleet.begin()
        engine = await fleet.start("b")
        assert engine.active is not None
        assert engine.active[0] == fleet.digests["1"]
        await fleet.crash()

    run(story())


def test_a_first_version_that_fails_is_told_to_the_starting_replica(fleet: Fleet) -> None:
    """Nothing was ever committed: the start raises the reason; a later promotion lets the next start succeed."""

    async def story() -> None:
        await fleet.begin()
        with pytest.raises(ReleaseRejectedError, match="it is blind"):
            await fleet.start("a", v1=ReleaseRejectedError("it is blind", step="golden"))
        with pytest.raises(ReleaseRejectedError, match="it is blind"):
            await fleet.start("b")
        assert fleet.actor.status()["state"] == "rejected"
        await fleet.actor.promote("2", "", "x")
        await fleet.start("c")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_nothing_promoted_is_a_clear_error(fleet: Fleet) -> None:
    """A replica of a model without any promoted version says what to do."""

    async def story() -> None:
        fleet.registry._desired.clear()
        await fleet.begin()
        with pytest.raises(ReleaseFaultError, match="steelyard promote"):
            await fleet.start("a")
        with pytest.raises(ReleaseRejectedError, match="only one version"):
            await fleet.actor.roll_back(1.0, "x")
        with pytest.raises(UnknownVersionError):
            await fleet.actor.promote("99", "", "x")
        await fleet.crash()

    run(story())


def test_a_killed_replica_is_dropped_and_the_rollout_goes_on(fleet: Fleet) -> None:
    """A proven death in PREPARE removes the member; the others commit."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        fleet.faults.arm("actor.before_claim", "delay:1")
        await fleet.actor.promote("2", "", "x")
        await fleet.kill("b")
        await fleet.until(fleet.all_on("2"))
        assert [r["id"] for r in fleet.actor.status()["replicas"]] == ["a"]
        await fleet.crash()

    run(story())


def test_a_replica_that_stops_in_order_leaves_at_once(fleet: Fleet) -> None:
    """Its farewell removes it without a proof of death."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        leaving = await fleet.start("b")
        await fleet.members["b"].stop()
        assert leaving.failing is not None
        assert [r["id"] for r in fleet.actor.status()["replicas"]] == ["a"]
        assert fleet.members["b"].ready() == "shutting down"
        assert fleet.members["b"].healthy() is None
        await fleet.crash()

    run(story())


def test_a_dead_actor_leaves_the_replicas_serving_and_its_next_life_goes_on(fleet: Fleet) -> None:
    """Ten minutes without an actor: answers go on; the next life knows the members and rolls on."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        await fleet.crash()
        await asyncio.sleep(600.0)
        assert all(engine.answering for engine in fleet.engines.values())
        assert [fleet.members[name].healthy() for name in ("a", "b")] == [None, None]
        fleet.registry.promote(MODEL, "2", promotion="meanwhile", reason="")
        await fleet.begin()
        await fleet.until(fleet.all_on("2"))
        assert fleet.deposed == 0
        await fleet.crash()

    run(story())


def test_the_actor_killed_after_commit_and_before_go(fleet: Fleet) -> None:
    """COMMIT stands and nobody was told: the replicas ask the ledger at their deadline and flip by themselves."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        fleet.faults.arm("actor.after_commit", "delay:1000")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(
            lambda: "COMMIT" in fleet.ledger.data.values() and all(e.held for e in fleet.engines.values())
        )
        await fleet.crash()
        await fleet.until(
            lambda: all(e.active is not None and e.active[0] == fleet.digests["2"] for e in fleet.engines.values()), 2.0
        )
        assert all(engine.answering for engine in fleet.engines.values())
        await fleet.begin()
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_without_ledger_and_actor_a_hold_ends_in_refusals_not_in_old_answers(fleet: Fleet) -> None:
    """In doubt beyond the limit: 503 and not ready; when the ledger is back, the decision is obeyed."""

    async def story() -> None:
        await fleet.begin()
        engine = await fleet.start("a")
        fleet.faults.arm("actor.after_commit", "delay:1000")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: engine.held)
        await asyncio.sleep(0.1)
        fleet.ledger.reachable = False
        await fleet.crash()
        await asyncio.sleep(3.0)
        assert (engine.held, engine.failing, fleet.members["a"].ready()) == (True, None, None)
        await asyncio.sleep(5.0)
        assert engine.held
        assert engine.failing is not None
        assert fleet.members["a"].ready() is not None
        assert fleet.members["a"].healthy() is None
        fleet.ledger.reachable = True
        await fleet.until(lambda: engine.answering)
        assert engine.active is not None
        assert engine.active[0] == fleet.digests["2"]
        assert fleet.members["a"].ready() is None

    run(story())


def test_many_promotions_in_a_row_end_on_the_last(fleet: Fleet) -> None:
    """A hundred promotions in ten seconds: no generation is committed twice, the last one serves."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        for number in range(100):
            await fleet.actor.promote(str(1 + number % 3), "", "x")
            await asyncio.sleep(0.1)
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        flips = [int(call.split()[1]) for call in fleet.engines["a"].calls if call.startswith("flip")]
        assert flips == sorted(set(flips))
        await fleet.crash()

    run(story())


def test_a_failure_inside_the_member_loop_is_survived_and_shown(fleet: Fleet) -> None:
    """An engine that breaks in the flip: the replica holds, joins again, and is unhealthy only if that goes on."""

    async def story() -> None:
        await fleet.begin()
        engine = await fleet.start("a")
        flip, broken = engine.flip, [True]

        def break_once(digest: str, generation: int) -> None:
            if broken.pop() if broken else False:
                msg = "not resident"
                raise ReleaseFaultError(msg, step="commit")
            flip(digest, generation)

        engine.flip = break_once  # type: ignore[method-assign]
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        assert fleet.members["a"].healthy() is None
        await fleet.crash()

    run(story())


def test_a_stuck_or_unstarted_loop_is_unhealthy(fleet: Fleet) -> None:
    """A member whose loop does not turn would block every rollout: the health check says so."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        member = fleet.members["a"]
        await asyncio.sleep(1.0)
        fleet.loops["a"].cancel()
        await asyncio.sleep(25.0)
        assert "stands still" in (member.healthy() or "")
        never = Member(MODEL, "n", FakeEngine(), fleet, fleet.ledger, None, fleet.settings)
        assert never.healthy() is None
        assert never.ready() == "m is not loaded yet"
        await never.start()
        assert "never started" in (never.healthy() or "")
        await fleet.crash()

    run(story())


@pytest.mark.parametrize(
    "point", ["replica.before_flip", "replica.before_ack", "replica.after_load", "replica.before_ask"]
)
def test_an_error_at_any_step_of_a_replica_ends_on_the_desired_version(fleet: Fleet, point: str) -> None:
    """Raised errors are not deaths: whatever step fails once, the fleet arrives."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        await asyncio.sleep(1.0)
        fleet.actor.arm(point, "raise", "b")
        await asyncio.sleep(1.0)
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"), 120.0)
        await fleet.crash()

    run(story())
