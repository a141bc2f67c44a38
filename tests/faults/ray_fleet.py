"""Replicas on real Ray with a real registry and engines on the fake backend: what the protocol's tests share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import ray

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.types import DetectOptions, RequestContext, Thresholds
from models.weights import registry as tags
from models.weights.cache import ReleaseCache
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from models.weights.mlflow_registry import MlflowRegistry
from serve.ledger import RayLedger
from serve.member import Member
from serve.rollout import RolloutClient, connect
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Ray's workers do not find this folder, so what they run of it travels to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

MODEL = "m"
DAMAGED = "3"
"""The version whose file differs from its manifest."""


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

    async def detect(self, data: bytes) -> tuple[str, int]:
        """Return the version and the generation that answered one image."""
        answer = await self.engine.detect(data, DetectOptions(), RequestContext("test", time.monotonic() + 30.0))
        return answer.release.version, answer.generation


def fleet_settings(home: Path) -> Settings:
    """Return the settings of a service that polls its registry often and puts no version on probation.

    Nodes that start and end beside it would make any version slow.
    """
    return Settings(
        home=home,
        models=(MODEL,),
        poll_interval_s=0.5,
        probation_s=0.0,
        backend="fake",
        allow_fault_injection=True,
        admin_key=None,
    )


def stocked_registry(settings: Settings, folder: Path) -> MlflowRegistry:
    """Return the service's registry with three versions, the third of them damaged; version 1 is promoted."""
    (settings.root / "registry").mkdir(parents=True)
    registry = MlflowRegistry(settings.tracking_uri)
    for number in (1, 2, 3):
        release = folder / f"v{number}"
        release.mkdir()
        graph = f"graph {number}".encode()
        (release / ONNX).write_bytes(graph if str(number) != DAMAGED else b"grapH 3")
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
        (release / MANIFEST).write_bytes(manifest.to_bytes())
        labels = {
            tags.DIGEST_TAG: manifest.digest,
            tags.SOURCE_TAG: manifest.source.sha256,
            tags.PROMOTABLE_TAG: "true",
        }
        registry.create_version(MODEL, release, tags=labels, metrics={})
    registry.promote(MODEL, "1", promotion="first", reason="test")
    return registry


def call(settings: Settings, ask: Callable[[RolloutClient], Any]) -> Any:
    """Return what the rollout actor answers."""

    async def run() -> Any:
        return await ask(await connect(settings))

    return asyncio.run(run())


def until(settings: Settings, true: Callable[[dict[str, Any]], bool], within_s: float = 20.0) -> dict[str, Any]:
    """Return the status once ``true`` of it."""
    end, status = time.monotonic() + within_s, {}
    while time.monotonic() < end:
        try:
            status = call(settings, lambda fleet: fleet.status(MODEL))
        except Exception as error:  # noqa: BLE001 - the actor may be dead on purpose
            status = {"error": str(error)}
        if "error" not in status and true(status):
            return status
        time.sleep(0.1)  # Ray runs in real time
    pytest.fail(f"not within {within_s} s: {status}")


def all_on(version: str, count: int) -> Callable[[dict[str, Any]], bool]:
    """Return the question whether ``count`` replicas, all there are, serve ``version``."""

    def true(status: dict[str, Any]) -> bool:
        there = [r for r in status["replicas"] if r["version"] == version and r["state"] == "serving"]
        return status["serving"] == version and len(there) == len(status["replicas"]) == count

    return true


def start(settings: Settings, name: str, **options: Any) -> Any:
    """Start a replica; return its handle at once. options: Ray's, such as the node's resource."""
    replica = ray.remote(Replica).options(name=f"SERVE_REPLICA::t#{name}", namespace="serve", num_cpus=0, **options)
    return replica.remote(settings)


def serving(handles: list[Any]) -> list[tuple[str, int, bool, str | None, int]]:
    """Return what each replica says of itself."""
    return ray.get([handle.serving.remote() for handle in handles], timeout=30)  # type: ignore[no-any-return]
