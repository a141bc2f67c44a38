"""The rollout protocol on real Ray, with a real registry and engines on the fake backend."""

from __future__ import annotations

import asyncio
import hashlib
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

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.errors import UnknownModelError, UnknownVersionError
from models.types import Thresholds
from models.weights import registry as tags
from models.weights.cache import ReleaseCache
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from models.weights.mlflow_registry import MlflowRegistry
from serve.ledger import RayLedger
from serve.member import Member
from serve.rollout import NAMESPACE, RolloutClient, actor_name, connect
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "m"


class Replica:
    """What a Serve replica does of the protocol, and nothing else."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        """Start as a replica does: load what is committed before anything else."""
        name = ray.get_runtime_context().get_actor_name()
        engine = Engine(FakeBackend(), EngineSettings(threads=1), sight_test=None)
        await engine.__aenter__()
        self.engine = engine
        fleet = await connect(settings)
        self.member = Member(MODEL, name, engine, fleet, RayLedger("detector"), ReleaseCache(settings.cache), settings)
        await self.member.start()
        self.loop = asyncio.get_running_loop().create_task(self.member.run())

    async def serving(self) -> tuple[str, int, bool, str | None, int]:
        """Return version, generation, whether it holds, what ails it, and the process id."""
        release = self.engine.serving
        assert release is not None
        ill = self.member.healthy() or self.member.ready()
        return release.version, self.engine.generation, self.engine.held, ill, os.getpid()


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
    return Settings(
        home=cluster, models=(MODEL,), poll_interval_s=0.5, backend="fake", allow_fault_injection=True, admin_key=None
    )


@pytest.fixture(scope="module")
def registry(settings: Settings) -> MlflowRegistry:
    """Return the service's registry."""
    (settings.root / "registry").mkdir(parents=True)
    return MlflowRegistry(settings.tracking_uri)


@pytest.fixture(scope="module")
def versions(registry: MlflowRegistry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Register three versions, the third with a file that differs from its manifest; return their digests."""
    found = {}
    for number in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"v{number}")
        graph = f"graph {number}".encode()
        (folder / ONNX).write_bytes(graph if number != 3 else b"grapH 3")
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
        info = registry.create_version(
            MODEL,
            folder,
            tags={
                tags.DIGEST_TAG: manifest.digest,
                tags.SOURCE_TAG: manifest.source.sha256,
                tags.PROMOTABLE_TAG: "true",
            },
            metrics={},
        )
        found[info.version] = manifest.digest
    registry.promote(MODEL, "1", promotion="first", reason="test")
    return found


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


def _call(settings: Settings, ask: Callable[[RolloutClient], Any]) -> Any:
    async def run() -> Any:
        return await ask(await connect(settings))

    return asyncio.run(run())


def _until(settings: Settings, true: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> dict[str, Any]:
    end, status = time.monotonic() + within_s, {}
    while time.monotonic() < end:
        try:
            status = _call(settings, lambda fleet: fleet.status(MODEL))
        except Exception as error:  # noqa: BLE001 - the actor may be dead on purpose
            status = {"error": str(error)}
        if "error" not in status and true(status):
            return status
        time.sleep(0.1)  # Ray runs in real time
    pytest.fail(f"not within {within_s} s: {status}")


def _all_on(version: str, count: int) -> Callable[[dict[str, Any]], bool]:
    def true(status: dict[str, Any]) -> bool:
        there = [r for r in status["replicas"] if r["version"] == version and r["state"] == "serving"]
        return status["serving"] == version and len(there) == len(status["replicas"]) == count

    return true


def _start(settings: Settings, name: str) -> Any:
    replica = ray.remote(Replica).options(name=f"SERVE_REPLICA::t#{name}", namespace="serve", num_cpus=0)
    return replica.remote(settings)


@pytest.fixture(scope="module")
def replicas(settings: Settings, versions: dict[str, str]) -> list[Any]:
    """Start two replicas on nothing but a promoted version."""
    assert versions
    handles = [_start(settings, "a"), _start(settings, "b")]
    ray.get([handle.serving.remote() for handle in handles], timeout=60)
    return handles


def _serving(handles: list[Any]) -> list[tuple[str, int, bool, str | None, int]]:
    return ray.get([handle.serving.remote() for handle in handles], timeout=30)  # type: ignore[no-any-return]


def test_the_first_replica_commits_the_first_generation(settings: Settings, replicas: list[Any]) -> None:
    """With nothing committed, two replicas start on the promoted version under one generation."""
    status = _until(settings, _all_on("1", 2))
    assert (status["state"], status["step"], status["reason"]) == ("serving", None, None)
    assert [(v, g, held, ill) for v, g, held, ill, _ in _serving(replicas)] == [
        ("1", status["generation"], False, None)
    ] * 2


def test_a_promotion_reaches_every_replica_and_a_rollback_returns(
    settings: Settings, replicas: list[Any], registry: MlflowRegistry
) -> None:
    """Promote flips both to version 2 under a higher generation; rollback flips back and moves the alias."""
    before = _until(settings, _all_on("1", 2))["generation"]
    _call(settings, lambda fleet: fleet.promote(MODEL, "2"))
    status = _until(settings, _all_on("2", 2))
    assert status["generation"] > before
    back = _call(settings, lambda fleet: fleet.rollback(MODEL))
    assert back["serving"] == "1"
    _until(settings, _all_on("1", 2))
    end = time.monotonic() + 10
    while time.monotonic() < end and (wanted := registry.desired(MODEL)) and wanted.version != "1":
        time.sleep(0.1)  # the alias moves off the critical path
    assert wanted is not None
    assert wanted.version == "1"
    assert {version for version, *_ in _serving(replicas)} == {"1"}


def test_a_damaged_version_is_refused_once_and_the_old_one_serves(settings: Settings, replicas: list[Any]) -> None:
    """A file that differs from its manifest is refused at verify, written down once, and changes nothing."""
    _until(settings, _all_on("1", 2))
    _call(settings, lambda fleet: fleet.promote(MODEL, "3"))
    status = _until(settings, lambda found: found["state"] == "rejected")
    assert (status["step"], status["serving"], status["desired"]) == ("verify", "1", "3")
    time.sleep(2.0)  # several polls of the registry: a retry would be written down
    lines = [json.loads(line) for line in (settings.root / "audit" / "rollout.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["result"] == "rejected" and line["to"]["version"] == "3"]) == 1
    assert {version for version, *_ in _serving(replicas)} == {"1"}


def test_an_unknown_version_and_an_unknown_model_raise_the_domain_errors(settings: Settings) -> None:
    """What the actor raises reaches the caller as the error it was, not as Ray's wrapping of it."""
    with pytest.raises(UnknownVersionError):
        _call(settings, lambda fleet: fleet.promote(MODEL, "99"))
    with pytest.raises(UnknownModelError):
        _call(settings, lambda fleet: fleet.status("other"))


@pytest.mark.parametrize("point", ["actor.after_commit", "actor.mid_go", "actor.after_hold", "actor.after_claim"])
def test_the_actor_dies_and_every_replica_still_arrives(settings: Settings, replicas: list[Any], point: str) -> None:
    """Whatever the actor had done when it was killed, both replicas end on the promoted version, healthy, not held."""
    status = _call(settings, lambda fleet: fleet.status(MODEL))
    goal = "2" if status["serving"] == "1" else "1"
    _call(settings, lambda fleet: fleet.arm(point, "exit"))
    _call(settings, lambda fleet: fleet.promote(MODEL, goal))
    _until(settings, _all_on(goal, 2), within_s=40.0)
    assert [(v, held, ill) for v, _, held, ill, _ in _serving(replicas)] == [(goal, False, None)] * 2


def test_a_killed_replica_leaves_the_member_set_and_a_new_one_joins(settings: Settings, replicas: list[Any]) -> None:
    """A proven death removes a member; its successor starts on the committed generation; rollouts go on."""
    pid = _serving(replicas)[1][4]
    os.kill(pid, signal.SIGKILL)
    status = _until(settings, lambda found: len(found["replicas"]) == 1, within_s=30.0)
    replicas[1] = _start(settings, "c")
    ray.get(replicas[1].serving.remote(), timeout=60)
    goal = "2" if status["serving"] == "1" else "1"
    _call(settings, lambda fleet: fleet.promote(MODEL, goal))
    _until(settings, _all_on(goal, 2))


def test_a_replica_that_dies_before_its_acknowledgement_does_not_block_the_fleet(
    settings: Settings, replicas: list[Any]
) -> None:
    """Killed between hold and acknowledgement, it aborts one attempt; the next one commits without it."""
    status = _until(settings, lambda found: len(found["replicas"]) == 2)
    goal = "2" if status["serving"] == "1" else "1"
    _call(settings, lambda fleet: fleet.arm("replica.before_ack@c", "exit"))
    _call(settings, lambda fleet: fleet.promote(MODEL, goal))
    _until(settings, _all_on(goal, 1), within_s=30.0)
    del replicas[1]


def test_the_actor_is_the_only_one_of_its_name(settings: Settings) -> None:
    """Connecting again reaches the same actor, not a second one."""
    first = ray.get_actor(actor_name(), namespace=NAMESPACE)
    _call(settings, lambda fleet: fleet.status(MODEL))
    assert ray.get_actor(actor_name(), namespace=NAMESPACE)._actor_id == first._actor_id
