"""Weights change under load: what the clients of a two-replica service suffer is nothing."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from clients import Clients, regressions
from planting import copy_of

from models.engine.backends.openvino_compiled import SUFFIX
from models.engine.priority import LOAD_NICENESS, LOADER
from models.engine.processors import Processors

if TYPE_CHECKING:
    from running import Service


ONE_THREAD = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) not in {2, 3}, reason="needs two replicas of one thread each and two processors"
)


def _assert_nobody_suffered(load: Clients) -> None:
    assert len(load.exchanges) > 20
    assert [e for e in load.exchanges if e.status != 200] == []
    assert regressions(load.exchanges) == []


def _assert_all_replicas_serve(service: Service, version: str) -> None:
    rollout = service.rollout()
    assert rollout["state"] in {"serving", "probation"}
    assert rollout["serving"] == version
    assert [replica["version"] for replica in rollout["replicas"]] == [version, version], rollout


def test_promote_and_rollback_under_load(service: Service) -> None:
    """Eight clients see version 2 after promote and 1 after rollback; none fails, none sees time run backwards."""
    service.settle("1")
    start = service.rollout()["generation"]
    with Clients(service.url, service.tray) as load:
        load.wait_for(start)
        promoted = service.cli("promote", "checkout", "2")
        assert promoted.returncode == 0, promoted.stderr
        middle = service.rollout()["generation"]
        load.wait_for(middle)
        _assert_all_replicas_serve(service, "2")
        rolled_back = service.cli("rollback", "checkout")
        assert rolled_back.returncode == 0, rolled_back.stderr
        load.wait_for(middle + 1)
        _assert_all_replicas_serve(service, "1")
    _assert_nobody_suffered(load)
    # An attempt that was aborted uses up a generation, so generations may have gaps.
    answered = sorted({(e.generation, e.version) for e in load.exchanges})
    assert [version for _, version in answered] == ["1", "2", "1"]


def test_promote_with_the_actor_killed_between_commit_and_go(service: Service) -> None:
    """The decision stands in the ledger: replicas finish the flip though the actor that took it is gone."""
    service.settle("1")
    start = service.rollout()["generation"]
    with Clients(service.url, service.tray) as load:
        load.wait_for(start)
        actor = service.actor_pid()
        service.arm("actor.after_commit", "exit")
        service.promote("2")
        load.wait_for(start + 1)
    _assert_nobody_suffered(load)
    service.settle("2")
    assert service.actor_pid() != actor, "the actor was not killed"
    _assert_all_replicas_serve(service, "2")


def test_loads_give_way_and_what_answers_does_not(service: Service) -> None:
    """After a swap the threads that prepared it lie behind those that answer, which lie behind nobody."""
    service.settle("1")
    service.promote("2")
    service.settle("2")
    replicas = service.replicas()
    assert len(replicas) == 2
    for replica in replicas:
        assert replica.nice() <= psutil.Process().nice()
        found = []
        for task in Path(f"/proc/{replica.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it may end while the list is read
                found.append(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        assert max(found) > replica.nice()


@ONE_THREAD
def test_whatever_compiles_gives_way(service: Service) -> None:
    """The runtime compiles on threads that it has kept from the start, when there was nobody to give way to."""
    service.settle("1")
    service.promote("2")
    service.settle("2")
    for replica in service.replicas():
        loaders = []
        for task in Path(f"/proc/{replica.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it may end while the list is read
                if (task / "comm").read_bytes().strip() == LOADER:
                    loaders.append(os.getpriority(os.PRIO_PROCESS, int(task.name)))
        assert len(loaders) > 1, "the runtime keeps no threads any more"
        assert min(loaders) >= LOAD_NICENESS


def test_a_machine_compiles_a_version_once(service: Service, tmp_path: Path) -> None:
    """Whatever replicas there are: they read what one process has compiled, and none had to help itself."""
    service.settle("1")
    engines = service.home / "cache" / "engines"
    for path in engines.glob(f"*{SUFFIX}"):
        path.unlink()
    logs = {path: path.stat().st_size for path in (service.home / "logs").rglob("replica-*.log")}
    third = copy_of(service, "2", tmp_path, 59.0).version
    service.promote(third)
    service.settle(third)
    assert len(list(engines.glob(f"*{SUFFIX}"))) > 1, "neither the network nor its forms were compiled apart"
    said = b"".join(path.read_bytes()[size:] for path, size in logs.items())
    assert said.count(b'"prepared"') >= len(service.replicas())
    for excuse in (b"this one compiles", b"compiled by every replica", b"compiled again", b"made anew", b"not kept"):
        assert excuse not in said
    service.settle("1")


@ONE_THREAD
def test_calls_take_processors_while_something_loads(service: Service) -> None:
    """Threads that answer keep to one processor each while a load says so, and afterwards may run anywhere again."""
    everywhere = os.sched_getaffinity(0)
    start = service.rollout()["generation"]
    with Clients(service.url, service.tray) as load:
        load.wait_for(start)
        assert _narrowest(service) == len(everywhere)
        with Processors(service.home / "cache" / "processors.lock").loading():
            deadline = time.monotonic() + 20.0
            while _narrowest(service) > 1:
                assert time.monotonic() < deadline, "no call has taken a processor"
    assert [e for e in load.exchanges if e.status != 200] == []
    assert _narrowest(service) == len(everywhere)


def _narrowest(service: Service) -> int:
    """Return on how many processors that thread of the replicas may run that may run on fewest."""
    found = []
    for replica in service.replicas():
        for task in Path(f"/proc/{replica.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it may end while the list is read
                found.append(len(os.sched_getaffinity(int(task.name))))
    return min(found)


def test_ray_shares_the_session_of_the_service_and_not_its_process_group(service: Service) -> None:
    """Linux shares processors out by sessions first, and a terminal interrupts process groups."""
    serving = service.process.pid
    for replica in service.replicas():
        assert os.getsid(replica.pid) == os.getsid(serving)
        assert os.getpgid(replica.pid) != os.getpgid(serving)
