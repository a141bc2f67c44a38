"""Many promotions, rollbacks at bad moments and clocks that jump: the last wish wins, and time never runs backwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from asks import promote, roll_back
from clients import Clients
from planting import copy_of, edit_weights, plant
from rollout_world import MODEL, Fleet
from running import audit
from verdicts import converged, nobody_suffered

from models.errors import RegistryError
from models.weights.cache import ReleaseCache
from serve.fake_time import run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from running import Service

PROMOTIONS = 100
PACE_S = 0.1


def _in_order(found: Iterable[str], among: Iterable[str]) -> bool:
    """Return whether ``found`` is what remains of ``among`` after leaving some out."""
    rest = iter(among)
    return all(any(one == other for other in rest) for one in found)


def test_fault_11_two_promotions_quickly(service: Service, tmp_path: Path) -> None:
    """A hundred at random, ten a second or as fast as they are taken: the last wins, none commits after a later one."""
    service.settle("1")
    versions = ["1", "2", *(copy_of(service, "2", tmp_path / str(n), 11.0 + n).version for n in range(2))]
    draw = random.Random(11)  # noqa: S311 - a draw, no secret
    wishes = [draw.choice(versions) for _ in range(PROMOTIONS - 1)]
    wishes.append(draw.choice([version for version in versions if version != wishes[-1]]))
    seen = len(audit(service))
    with Clients(service.url, service.tray, count=4, most_seconds=280.0) as load:
        load.wait_for(0)
        begun = time.monotonic()
        for number, version in enumerate(wishes):
            time.sleep(max(0.0, begun + number * PACE_S - time.monotonic()))
            promote(service, version)
        converged(service, wishes[-1])
        load.wait_for(service.rollout()["generation"])
    nobody_suffered(load)
    lines = audit(service)[seen:]
    accepted = [line["to"]["version"] for line in lines if (line["action"], line["result"]) == ("promote", "accepted")]
    commits = [line for line in lines if line["result"] == "committed"]
    assert accepted == wishes
    generations = [line["generation"] for line in commits]
    assert generations == sorted(set(generations))
    assert _in_order([line["to"]["version"] for line in commits], wishes)
    assert commits[-1]["to"]["version"] == wishes[-1]
    answered = {e.generation: e.version for e in load.exchanges}
    told = {line["generation"]: line["to"]["version"] for line in commits}
    assert {g: v for g, v in answered.items() if g in told} == {g: v for g, v in told.items() if g in answered}
    service.settle("1")


def test_fault_12_promote_then_rollback(service: Service) -> None:
    """The version before is resident, so each of ten rollbacks takes a moment; the promotions between take longer."""
    service.settle("1")
    took = []
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        for _ in range(10):
            promote(service, "2")
            converged(service, "2")
            begun = time.monotonic()
            state = roll_back(service)
            took.append(time.monotonic() - begun)
            assert state["serving"] == "1"
            converged(service, "1")
    nobody_suffered(load)
    # On a quiet machine 0.1 s from end to end; the bound leaves room for one that runs other tests.
    assert sorted(took)[len(took) // 2] < 0.5, took
    assert max(took) < 3.0, took


def test_fault_12_rollback_while_a_bad_candidate_loads(service: Service, tmp_path: Path) -> None:
    """It takes the candidate back without waiting for it, the next one what serves; no poll brings either back."""
    service.settle("1")
    promote(service, "2")
    converged(service, "2")
    service.registry().fetch("checkout", "1", tmp_path)
    edit_weights(tmp_path, np.zeros_like, last=24)
    bad = plant(service, tmp_path, metrics={"planted": 12.0}).version
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"replica.before_prepare@{replica}", "delay:8.0")
        promote(service, bad)
        service.wait_until(lambda r: {"id": replica, "version": "2", "state": "preparing"} in r["replicas"])
        begun = time.monotonic()
        assert roll_back(service)["serving"] == "2"
        assert roll_back(service)["serving"] == "1"
        assert time.monotonic() - begun < 5.0
        polls = time.monotonic() + 5.0
        while time.monotonic() < polls:
            assert service.rollout()["serving"] == "1"
            time.sleep(0.2)  # the registry is polled in real time
    nobody_suffered(load)
    assert {e.version for e in load.exchanges} == {"1", "2"}
    service.settle("1")


class JumpingClock:
    """A wall clock that is set an hour forward or back at every look."""

    def __init__(self) -> None:
        """Begin with an hour back."""
        self.looks = 0
        self._real = time.time

    def __call__(self) -> float:
        """Return the time, wrong by an hour."""
        self.looks += 1
        return self._real() + (3600.0 if self.looks % 2 else -3600.0)


@pytest.mark.sample
def test_fault_13_clock_skew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a wall clock that jumps by two hours a rollout, an outage and a rollback go as ever."""
    clock = JumpingClock()
    monkeypatch.setattr(time, "time", clock)
    fleet = Fleet(tmp_path)

    async def story() -> None:
        await fleet.begin()
        for name in "abc":
            await fleet.start(name)
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"), 15.0)
        fleet.registry.down = True
        await asyncio.sleep(600.0)
        with pytest.raises(RegistryError):
            await fleet.actor.promote("3", "", "x")
        assert all(engine.answering for engine in fleet.engines.values())
        assert [fleet.members[name].healthy() for name in "abc"] == [None] * 3
        fleet.registry.down = False
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"), 15.0)
        # A partial release of a live process looks hours old to such a clock: dropping it may cost a retry, no more.
        cache = ReleaseCache(fleet.settings.cache)
        cache.prune(fleet.digests.values())
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"), 60.0)
        await fleet.crash()

    run(story())
    cache = ReleaseCache(fleet.settings.cache)
    time.time()
    assert cache.get(fleet.digests["3"]) is not None
    assert clock.looks > 1
    generations = [line["generation"] for line in fleet.audit() if line["result"] == "committed"]
    assert generations == sorted(set(generations))


def test_fault_18_watcher_dead_of_an_unforeseen_error(tmp_path: Path) -> None:
    """A poll that raises what nobody expects ends its loop, which is begun again before two periods are over."""
    fleet = Fleet(tmp_path)

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        desired, broken = fleet.registry.desired, deque([ValueError("not a registry's error")] * 3)

        def read(model: str) -> Any:
            if broken:
                raise broken.popleft()
            return desired(model)

        fleet.registry.desired = read  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        await fleet.until(lambda: not broken)
        fleet.registry.promote(MODEL, "2", promotion="by hand", reason="")
        begun = loop.time()
        await fleet.until(fleet.all_on("2"), 10.0)
        assert loop.time() - begun < 2.0 * fleet.settings.poll_interval_s + 1.0
        await fleet.crash()

    run(story())
