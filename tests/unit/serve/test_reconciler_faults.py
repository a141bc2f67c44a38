"""The whole rollout without Ray, where replicas, the actor, the ledger, the registry or the disk fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from rollout_world import MODEL

from models.errors import RegistryError, ReleaseFaultError
from models.rollout.messages import Join
from models.weights.manifest import ONNX
from serve.fake_engine import FakeEngine
from serve.fake_time import run
from serve.member import Member

if TYPE_CHECKING:
    from rollout_world import Fleet


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
