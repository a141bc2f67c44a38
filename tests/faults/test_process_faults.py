"""A process dies at a named point of a rollout, under load; the fleet still ends on the version asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
import pytest
from asks import NamedClients, promote, roll_back
from clients import Clients, regressions
from planting import copy_of, move_alias
from processes import named, process_of
from verdicts import IN_FLIGHT, converged, failed, nobody_suffered, other_version

from models.engine.backends.openvino_compiled import SUFFIX
from serve.faults import ACTOR_POINTS, REPLICA_POINTS

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service

SAMPLED: Final = {"actor.after_commit", "replica.before_flip"}
TRIAL: Final = {"canary": [0.5], "step_s": 2.0}
"""An order under which a promotion is tried on clients; a shadow finds no time to spare under this load."""


@dataclass(frozen=True)
class Way:
    """How a rollout comes by a point. first: what else is armed; ``@`` stands for the replica under attack.

    act: ``promote``, ``rollback`` or ``trial``; order: asked for with a trial.
    """

    first: tuple[tuple[str, str], ...] = ()
    act: str = "promote"


IN_DOUBT: Final = Way((("actor.after_commit", "exit"),))
FALLS_OUT: Final = Way((("replica.before_flip@", "raise"),))
WAYS: Final = {
    "actor.before_abort": Way((("replica.before_ack@", "delay:1.0"),)),
    "actor.after_abort": Way((("replica.before_ack@", "delay:1.0"),)),
    "actor.before_record": Way((("replica.before_prepare@", "exit"),)),
    "actor.after_record": Way((("replica.before_prepare@", "exit"),)),
    "actor.before_alias": Way(act="rollback"),
    "replica.before_ask": IN_DOUBT,
    "replica.after_ask": IN_DOUBT,
    "replica.before_admit": FALLS_OUT,
    "replica.after_admit": FALLS_OUT,
}
PLAIN: Final = {
    *("actor.before_fetch", "actor.after_fetch", "actor.after_verify", "actor.before_claim", "actor.after_claim"),
    *("actor.before_judge",),
    *("actor.before_hold", "actor.after_hold", "actor.before_commit", "actor.after_commit", "actor.mid_go"),
    *("replica.before_prepare", "replica.after_fetch", "replica.after_load", "replica.before_ack"),
    *("replica.after_ack", "replica.before_flip", "replica.after_flip"),
}
STARTING: Final = {"actor.after_recover", "replica.before_join"}
"""Points of a process that is only starting: nobody can arm it, so it is killed from outside."""


def _marked(points: tuple[str, ...]) -> list[object]:
    return [
        pytest.param(point, marks=[pytest.mark.sample] if point in SAMPLED else [])
        for point in points
        if point not in STARTING
    ]


def _target(service: Service, point: str, folder: Path) -> str:
    """Return a version whose promotion passes ``point``: one that must be fetched where that is attacked."""
    if point in ("actor.after_fetch", "actor.after_verify", "actor.before_fetch"):
        return copy_of(service, "2", folder, time.time()).version
    return other_version(service)


def _attack(service: Service, point: str, replica: str, folder: Path) -> str:
    """Arm ``point`` to end its process, bring the rollout there and return the version that must serve in the end."""
    way = WAYS.get(point, Way(act="promote" if point in PLAIN else "trial"))
    version = _target(service, point, folder)
    if way.act == "rollback":
        before = service.rollout()["serving"]
        service.settle(version)
        version = before
    for name, action in (*way.first, (point, "exit")):
        service.arm(f"{name.removesuffix('@')}@{replica}" if name.startswith("replica.") else name, action)
    answered = not point.startswith("actor.")
    if way.act == "rollback":
        roll_back(service, answered=answered)
    else:
        promote(service, version, TRIAL if way.act == "trial" else None, answered=answered)
    return version


@pytest.mark.parametrize("point", _marked(ACTOR_POINTS))
def test_fault_09_actor_crash_mid_swap(service: Service, tmp_path: Path, point: str) -> None:
    """No client notices that the rollout actor died, and the promotion is finished by its next life."""
    lost = IN_FLIGHT if WAYS.get(point, Way()).first[:1] == (("replica.before_prepare@", "exit"),) else 0
    service.settle(service.rollout()["serving"])
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load, NamedClients(service):
        load.wait_for(0)
        actor = service.actor_pid()
        version = _attack(service, point, replica, tmp_path)
        converged(service, version)
        end = time.monotonic() + 30.0
        while service.actor_pid() == actor and time.monotonic() < end:
            time.sleep(0.2)  # what is attacked may come after the last flip
        converged(service, version)
    assert service.actor_pid() != actor, "the fault did not fire"
    nobody_suffered(load, lost=lost)


@pytest.mark.parametrize("point", _marked(REPLICA_POINTS))
def test_fault_09_replica_crash_mid_swap(service: Service, tmp_path: Path, point: str) -> None:
    """A replica loses at most what was in flight in it; nobody is answered by an older version after a newer one."""
    service.settle(service.rollout()["serving"])
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load, NamedClients(service):
        load.wait_for(0)
        version = _attack(service, point, replica, tmp_path)
        service.wait_until(lambda rollout: replica not in {r["id"] for r in rollout["replicas"]}, within_s=60.0)
        converged(service, version)
    nobody_suffered(load, lost=IN_FLIGHT)


def test_fault_09_replica_crash_while_it_starts(service: Service) -> None:
    """A successor that is killed before it has joined is no member yet: the promotion waits for nobody."""
    service.settle(service.rollout()["serving"])
    replica = service.rollout()["replicas"][0]["id"]
    version = other_version(service)
    before = {process.pid for process in named(service, "ServeReplica")}
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"replica.before_prepare@{replica}", "exit")
        service.promote(version)
        successor = process_of(service, "ServeReplica", beside=before)
        os.kill(successor.pid, signal.SIGKILL)
        converged(service, version)
    nobody_suffered(load, lost=IN_FLIGHT)


def test_fault_09_actor_crash_while_it_starts(service: Service) -> None:
    """An actor that is killed again as soon as it comes back finishes the promotion in its third life."""
    version = other_version(service)
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        first = service.actor_pid()
        assert first is not None
        service.arm("actor.after_hold", "exit")
        service.promote(version)
        second = process_of(service, "RolloutActor", beside={first})
        os.kill(second.pid, signal.SIGKILL)
        converged(service, version)
    assert service.actor_pid() not in (first, second.pid)
    nobody_suffered(load)


def test_fault_09_replica_that_acknowledges_too_late(service: Service) -> None:
    """The attempt is given up within its deadline, nobody flips alone, and the next attempt succeeds."""
    version = other_version(service)
    replica = service.rollout()["replicas"][0]["id"]
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"replica.before_ack@{replica}", "delay:1.0")
        service.promote(version)
        converged(service, version)
    nobody_suffered(load)


@pytest.mark.sample
def test_fault_18_watcher_dead(service: Service) -> None:
    """The process that watches the registry is killed: its next life follows an alias that was moved by hand."""
    version = other_version(service)
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        watcher = service.actor_pid()
        assert watcher is not None
        os.kill(watcher, signal.SIGKILL)
        move_alias(service, version, "-watcher")
        converged(service, version, within_s=40.0)
    assert service.actor_pid() != watcher
    nobody_suffered(load)


def test_fault_19_split_versions_across_replicas(service: Service) -> None:
    """While one replica is three seconds behind nobody serves the new version; then both flip as one."""
    version = other_version(service)
    service.settle(service.rollout()["serving"])
    slow = service.rollout()["replicas"][1]["id"]
    with Clients(service.url, service.tray, count=8) as load:
        load.wait_for(0)
        begun = time.monotonic()
        service.arm(f"replica.before_prepare@{slow}", "delay:3.0")
        service.promote(version)
        converged(service, version)
    nobody_suffered(load)
    new = [e for e in load.exchanges if e.version == version]
    old = [e for e in load.exchanges if e.version != version]
    first, last = min(e.answered for e in new), max(e.sent for e in old)
    assert first - begun >= 3.0
    # A request that was sent after the first new answer is never answered by the old version.
    assert last <= first, last - first


@pytest.mark.sample
def test_fault_24_controller_crash(service: Service) -> None:
    """Ray Serve's controller is killed in the middle of a swap, which goes on without it."""
    version = other_version(service)
    service.settle(service.rollout()["serving"])
    replica = service.rollout()["replicas"][0]["id"]
    (controller,) = named(service, "ServeController")
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.arm(f"replica.before_prepare@{replica}", "delay:2.0")
        service.promote(version)
        os.kill(controller.pid, signal.SIGKILL)
        converged(service, version)
        successor = process_of(service, "ServeController", beside={controller.pid})
        time.sleep(5.0)  # what the new controller does with the replicas that it finds
    assert successor.is_running()
    nobody_suffered(load)
    assert service.rollout()["serving"] == version


def test_fault_24_proxy_crash(service: Service) -> None:
    """HAProxy is killed in the middle of a swap: it comes back, and clients that try again see no older version."""
    version = other_version(service)
    service.settle(service.rollout()["serving"])
    proxies = [each for each in named(service, "haproxy") if "haproxy" in each.name()]
    assert proxies
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        service.promote(version)
        for proxy in proxies:
            os.kill(proxy.pid, signal.SIGKILL)
        killed = time.monotonic()
        deadline = killed + 60.0
        while not any(e.sent > killed + 1.0 and e.status == 200 for e in list(load.exchanges)):
            assert time.monotonic() < deadline, "nobody has been answered since the proxy was killed"
            threading.Event().wait(0.2)
        converged(service, version)
        load.wait_for(service.rollout()["generation"])
    assert regressions(load.exchanges) == []
    recovered = min(e.answered for e in load.exchanges if e.sent > killed and e.status == 200)
    assert all(e.sent < recovered + 2.0 for e in failed(load.exchanges)), "failures go on after the proxy is back"
    assert psutil.pid_exists(service.process.pid)


@pytest.mark.parametrize("end", [pytest.param(signal.SIGKILL, marks=pytest.mark.sample), signal.SIGSTOP])
def test_a_compiling_process_that_ends_or_hangs_costs_no_promotion(
    service: Service, tmp_path: Path, end: signal.Signals
) -> None:
    """Killed for memory, the replicas compile themselves; one that stands still is waited for only so long."""
    service.settle("1")
    for path in (service.home / "cache" / "engines").glob(f"*{SUFFIX}"):
        path.unlink()
    version = copy_of(service, "2", tmp_path, time.time()).version
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        promote(service, version)
        deadline = time.monotonic() + 60.0
        while not (found := _compiling(service)):
            assert time.monotonic() < deadline, "nothing was compiled apart"
            time.sleep(0.01)  # the service under test lives in real time
        found[0].send_signal(end)
        converged(service, version)
    nobody_suffered(load)
    assert not found[0].is_running(), "the process stayed behind"
    service.settle("1")


def _compiling(service: Service) -> list[psutil.Process]:
    found = []
    for replica in service.replicas():
        with contextlib.suppress(psutil.Error):  # one may end while the list is read
            found += [each for each in replica.children() if "openvino_compile" in " ".join(each.cmdline())]
    return found
