"""The rollout protocol on real Ray, with a real registry and engines on the fake backend."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from ray_fleet import MODEL, all_on, call, fleet_settings, serving, start, stocked_registry, until

from models.errors import UnknownModelError, UnknownVersionError
from serve.ledger import RayLedger
from serve.rollout_actor import NAMESPACE, actor_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.weights.mlflow_registry import MlflowRegistry
    from serve.settings import Settings


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """Start Ray in folders of its own; return the home folder of a service."""
    folder = Path(tempfile.mkdtemp(prefix="sy"))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=str(folder / "r"),
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield folder / "home"
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def settings(cluster: Path) -> Settings:
    """Return the settings of a service that polls its registry often."""
    return fleet_settings(cluster)


@pytest.fixture(scope="module")
def registry(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    """Return the service's registry: three versions, the third with a file that differs from its manifest."""
    return stocked_registry(settings, tmp_path_factory.mktemp("versions"))


@pytest.mark.sample
@pytest.mark.usefixtures("cluster")
def test_the_ledger_lists_keys_as_they_were_written() -> None:
    """A member recorded under its actor's name, colons and all, is recovered under that name."""
    member = "SERVE_REPLICA::default#detector#abc"

    async def run() -> list[str]:
        ledger = RayLedger("a-test:of-names")
        await ledger.put_if_absent(f"{MODEL}/member/{member}", "1")
        return await ledger.keys(f"{MODEL}/member/")

    assert asyncio.run(run()) == [f"{MODEL}/member/{member}"]


@pytest.fixture(scope="module")
def replicas(settings: Settings, registry: MlflowRegistry) -> list[Any]:
    """Start two replicas on nothing but a promoted version."""
    assert registry.desired(MODEL) is not None
    handles = [start(settings, "a"), start(settings, "b")]
    ray.get([handle.serving.remote() for handle in handles], timeout=60)
    return handles


def test_the_first_replica_commits_the_first_generation(settings: Settings, replicas: list[Any]) -> None:
    """With nothing committed, two replicas start on the promoted version under one generation."""
    status = until(settings, all_on("1", 2))
    assert (status["state"], status["step"], status["reason"]) == ("serving", None, None)
    assert [(v, g, held, ill) for v, g, held, ill, _ in serving(replicas)] == [
        ("1", status["generation"], False, None)
    ] * 2


def test_a_promotion_reaches_every_replica_and_a_rollback_returns(
    settings: Settings, replicas: list[Any], registry: MlflowRegistry
) -> None:
    """Promote flips both to version 2 under a higher generation; rollback flips back and moves the alias."""
    before = until(settings, all_on("1", 2))["generation"]
    call(settings, lambda fleet: fleet.promote(MODEL, "2"))
    status = until(settings, all_on("2", 2))
    assert status["generation"] > before
    back = call(settings, lambda fleet: fleet.rollback(MODEL))
    assert back["serving"] == "1"
    until(settings, all_on("1", 2))
    end = time.monotonic() + 10
    while time.monotonic() < end and (wanted := registry.desired(MODEL)) and wanted.version != "1":
        time.sleep(0.1)  # the alias moves off the critical path
    assert wanted is not None
    assert wanted.version == "1"
    assert {version for version, *_ in serving(replicas)} == {"1"}


def test_a_damaged_version_is_refused_once_and_the_old_one_serves(settings: Settings, replicas: list[Any]) -> None:
    """A file that differs from its manifest is refused at verify, written down once, and changes nothing."""
    until(settings, all_on("1", 2))
    call(settings, lambda fleet: fleet.promote(MODEL, "3"))
    status = until(settings, lambda found: found["state"] == "rejected")
    assert (status["step"], status["serving"], status["desired"]) == ("verify", "1", "3")
    time.sleep(2.0)  # several polls of the registry: a retry would be written down
    lines = [json.loads(line) for line in (settings.root / "audit" / "rollout.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["result"] == "rejected" and line["to"]["version"] == "3"]) == 1
    assert {version for version, *_ in serving(replicas)} == {"1"}


def test_an_unknown_version_and_an_unknown_model_raise_the_domain_errors(settings: Settings) -> None:
    """What the actor raises reaches the caller as the error it was, not as Ray's wrapping of it."""
    with pytest.raises(UnknownVersionError):
        call(settings, lambda fleet: fleet.promote(MODEL, "99"))
    with pytest.raises(UnknownModelError):
        call(settings, lambda fleet: fleet.status("other"))


@pytest.mark.parametrize("point", ["actor.after_commit", "actor.mid_go", "actor.after_hold", "actor.after_claim"])
def test_the_actor_dies_and_every_replica_still_arrives(settings: Settings, replicas: list[Any], point: str) -> None:
    """Whatever the actor had done when it was killed, both replicas end on the promoted version, healthy, not held."""
    status = call(settings, lambda fleet: fleet.status(MODEL))
    goal = "2" if status["serving"] == "1" else "1"
    call(settings, lambda fleet: fleet.arm(point, "exit"))
    call(settings, lambda fleet: fleet.promote(MODEL, goal))
    until(settings, all_on(goal, 2), within_s=40.0)
    assert [(v, held, ill) for v, _, held, ill, _ in serving(replicas)] == [(goal, False, None)] * 2


def test_a_killed_replica_leaves_the_member_set_and_a_new_one_joins(settings: Settings, replicas: list[Any]) -> None:
    """A proven death removes a member; its successor starts on the committed generation; rollouts go on."""
    pid = serving(replicas)[1][4]
    os.kill(pid, signal.SIGKILL)
    status = until(settings, lambda found: len(found["replicas"]) == 1, within_s=30.0)
    replicas[1] = start(settings, "c")
    ray.get(replicas[1].serving.remote(), timeout=60)
    goal = "2" if status["serving"] == "1" else "1"
    call(settings, lambda fleet: fleet.promote(MODEL, goal))
    until(settings, all_on(goal, 2))


def test_a_replica_that_dies_before_its_acknowledgement_does_not_block_the_fleet(
    settings: Settings, replicas: list[Any]
) -> None:
    """Killed between hold and acknowledgement, it aborts one attempt; the next one commits without it."""
    status = until(settings, lambda found: len(found["replicas"]) == 2)
    goal = "2" if status["serving"] == "1" else "1"
    call(settings, lambda fleet: fleet.arm("replica.before_ack@c", "exit"))
    call(settings, lambda fleet: fleet.promote(MODEL, goal))
    until(settings, all_on(goal, 1), within_s=30.0)
    del replicas[1]


def test_the_actor_is_the_only_one_of_its_name(settings: Settings) -> None:
    """Connecting again reaches the same actor, not a second one."""
    first = ray.get_actor(actor_name(), namespace=NAMESPACE)
    call(settings, lambda fleet: fleet.status(MODEL))
    assert ray.get_actor(actor_name(), namespace=NAMESPACE)._actor_id == first._actor_id
