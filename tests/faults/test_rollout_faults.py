"""A process dies at a named point of a rollout, under load; the fleet still ends on the version asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from clients import Clients, Exchange, regressions

if TYPE_CHECKING:
    from running import Service

SAMPLED = {"actor.after_commit", "actor.mid_go", "replica.before_flip"}
ACTOR_POINTS = (
    "actor.before_fetch",
    "actor.after_fetch",
    "actor.after_verify",
    "actor.before_claim",
    "actor.after_claim",
    "actor.before_hold",
    "actor.after_hold",
    "actor.before_commit",
    "actor.after_commit",
    "actor.mid_go",
)
REPLICA_POINTS = (
    "replica.before_prepare",
    "replica.after_fetch",
    "replica.after_load",
    "replica.before_ack",
    "replica.after_ack",
    "replica.before_flip",
    "replica.after_flip",
)
IN_FLIGHT = 8
"""Most requests that a dying replica may take with it: those of the clients that had one there."""


def _marked(points: tuple[str, ...]) -> list[object]:
    return [pytest.param(point, marks=[pytest.mark.sample] if point in SAMPLED else []) for point in points]


def _next_version(service: Service) -> str:
    return "2" if service.rollout()["serving"] == "1" else "1"


def _converged(service: Service, version: str) -> None:
    def there(rollout: dict[str, object]) -> bool:
        replicas = rollout["replicas"]
        assert isinstance(replicas, list)
        all_there = len(replicas) == 2 and all(r["version"] == version for r in replicas)
        return rollout["state"] == "serving" and rollout["serving"] == version and all_there

    service.wait_until(there, within_s=90)


def _failed(exchanges: list[Exchange]) -> list[Exchange]:
    return [exchange for exchange in exchanges if exchange.status != 200]


@pytest.mark.parametrize("point", _marked(ACTOR_POINTS))
def test_the_actor_dies(service: Service, point: str) -> None:
    """No client notices that the rollout actor died, and the promotion is finished by its next life."""
    version = _next_version(service)
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        actor = service.actor_pid()
        service.arm(point, "exit")
        service.promote(version)
        _converged(service, version)
    assert service.actor_pid() != actor, "the fault did not fire"
    assert _failed(load.exchanges) == []
    assert regressions(load.exchanges) == []


@pytest.mark.parametrize("point", _marked(REPLICA_POINTS))
def test_a_replica_dies(service: Service, point: str) -> None:
    """A replica loses at most what was in flight in it; nobody is answered by an older version after a newer one."""
    version = _next_version(service)
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"{point}@{replica}", "exit")
        service.promote(version)
        _converged(service, version)
    assert replica not in {r["id"] for r in service.rollout()["replicas"]}, "the fault did not fire"
    assert len(_failed(load.exchanges)) <= IN_FLIGHT
    assert regressions(load.exchanges) == []


def test_a_replica_that_acknowledges_too_late_delays_the_promotion(service: Service) -> None:
    """The attempt is given up within its deadline, nobody flips alone, and the next attempt succeeds."""
    version = _next_version(service)
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"replica.before_ack@{replica}", "delay:1.0")
        service.promote(version)
        _converged(service, version)
    assert _failed(load.exchanges) == []
    assert regressions(load.exchanges) == []
