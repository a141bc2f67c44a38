"""The rollout without Ray, while autoscaling takes replicas away and brings new ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from serve.fake_time import run

if TYPE_CHECKING:
    from rollout_world import Fleet

SLOW = {
    "actor.before_fetch": 0.3,
    "replica.before_prepare": 0.3,
    "replica.after_load": 0.3,
    "actor.before_hold": 0.1,
    "replica.before_ack": 0.1,
    "actor.before_commit": 0.1,
}
"""Points at which a rollout stands still here (seconds), so that replicas come and go in each of its steps."""


def slow_down(fleet: Fleet) -> None:
    """Let the next rollout stand still at each point."""
    for point, seconds in SLOW.items():
        for faults in (fleet.faults, *(member._faults for member in fleet.members.values())):
            faults.arm(point, f"delay:{seconds}")


async def scaled_down(fleet: Fleet, name: str) -> None:
    """Take a replica away as Ray Serve does: it is told to stop, and only then its process ends."""
    await fleet.members[name].stop()
    fleet.loops[name].cancel()
    await asyncio.sleep(0.2)
    await fleet.kill(name)


@pytest.mark.parametrize(
    ("moment_s", "step"),
    [
        (0.0, "fetch"),
        (0.2, "fetch"),
        (0.4, "load"),
        (0.8, "load"),
        (1.0, "hold"),
        (1.05, "hold"),
        (1.1, "hold"),
        (1.15, "commit"),
    ],
)
def test_a_replica_taken_away_in_a_rollout_neither_stops_nor_fails_it(fleet: Fleet, moment_s: float, step: str) -> None:
    """Whatever the others are doing then: they commit, nothing is rejected or put off, and the leaver is forgotten."""

    async def story() -> None:
        await fleet.begin()
        await asyncio.gather(*(fleet.start(name) for name in "abc"))
        await fleet.until(fleet.all_on("1"))
        slow_down(fleet)
        await fleet.actor.promote("2", "", "x")
        await asyncio.sleep(moment_s)
        found = fleet.actor.status()
        assert (found["serving"], found["step"]) == ("1", step)
        await scaled_down(fleet, "c")
        await fleet.until(fleet.all_on("2"), within_s=10.0)
        await asyncio.sleep(10.0)
        assert [replica["id"] for replica in fleet.actor.status()["replicas"]] == ["a", "b"]
        results = [entry["result"] for entry in fleet.audit() if entry["to"]["version"] == "2"]
        assert "committed" in results
        assert not {"rejected", "failed", "aborted"} & set(results)
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("moment_s", [0.0, 0.3, 0.7, 1.1])
def test_a_replica_brought_in_a_rollout_serves_what_the_others_do(fleet: Fleet, moment_s: float) -> None:
    """It is admitted on what is committed when it asks, and follows with them."""

    async def story() -> None:
        await fleet.begin()
        await asyncio.gather(*(fleet.start(name) for name in "ab"))
        await fleet.until(fleet.all_on("1"))
        slow_down(fleet)
        await fleet.actor.promote("2", "", "x")
        await asyncio.sleep(moment_s)
        await fleet.start("c")
        await fleet.until(fleet.all_on("2"), within_s=20.0)
        assert len(fleet.engines) == 3
        await fleet.crash()

    run(story())


def test_a_replica_brought_while_the_registry_is_away_asks_nobody_but_the_fleet(fleet: Fleet) -> None:
    """The actor hands out what it holds, or the machine's cache does; the registry is not read for it."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.until(fleet.all_on("1"))
        fleet.registry.down = True
        await fleet.start("b")
        fleet.depot = None  # the actor has nothing to hand out any more
        await fleet.start("c")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())
