"""A whole node is lost, or the registry has lost everything: on a Ray of several nodes, with the fake backend."""

from __future__ import annotations

import io
import random
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import mlflow
import numpy as np
import pytest
import ray
from PIL import Image
from ray_fleet import MODEL, all_on, call, fleet_settings, serving, start, stocked_registry, until
from ray_nodes import Nodes

from serve.rollout_actor import NAMESPACE, actor_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from models.weights.mlflow_registry import MlflowRegistry
    from serve.settings import Settings


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Callers:
    """Threads that send images to replicas drawn at random, and once more to another where a replica is gone."""

    replicas: dict[str, Any]
    generations: list[int] = field(default_factory=list)
    lost: int = 0
    refused: list[str] = field(default_factory=list)
    regressions: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _newest: int = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._threads = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(3)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=40)

    def wait_for(self, answers: int) -> None:
        """Return once so many more images were answered."""
        wanted, deadline = len(self.generations) + answers, time.monotonic() + 60.0
        while len(self.generations) < wanted:
            assert time.monotonic() < deadline, (len(self.generations), wanted, self.refused)
            threading.Event().wait(0.05)

    def _send(self, seed: int) -> None:
        draw, picture = random.Random(seed), _picture()  # noqa: S311 - a draw, no secret
        while not self._stop.is_set():
            floor, tried = self._newest, list(self.replicas.values())
            draw.shuffle(tried)
            for replica in tried:
                try:
                    _, generation = ray.get(replica.detect.remote(picture), timeout=30)
                except ray.exceptions.RayError as error:
                    self.lost += isinstance(error, ray.exceptions.RayActorError)
                    if not isinstance(error, ray.exceptions.RayActorError):
                        self.refused.append(repr(error))
                    continue
                self.regressions += generation < floor
                self._newest = max(self._newest, generation)
                self.generations.append(generation)
                break
            else:
                self.refused.append("no replica is left")
            self._stop.wait(0.01)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Return a head and two more nodes."""
    folder = Path(tempfile.mkdtemp(prefix="sn"))
    found = Nodes(folder)
    found.add("second")
    found.add("third")
    yield found
    found.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the settings of a service."""
    return fleet_settings(tmp_path_factory.mktemp("service") / "home")


@pytest.fixture(scope="module")
def registry(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    """Return the service's registry."""
    return stocked_registry(settings, tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def replicas(nodes: Nodes, settings: Settings, registry: MlflowRegistry) -> dict[str, Any]:
    """Return one replica on each node, by the node's name."""
    assert nodes.cluster.address
    assert registry.desired(MODEL) is not None
    found = {name: _start_on(settings, name, name) for name in ("head", "second", "third")}
    ray.get([replica.serving.remote() for replica in found.values()], timeout=90)
    return found


def _start_on(settings: Settings, node: str, name: str) -> Any:
    return start(settings, name, resources={node: 1})


def test_fault_10_node_loss(nodes: Nodes, settings: Settings, replicas: dict[str, Any]) -> None:
    """A node dies in the middle of a promotion: only its own requests are lost, the others commit, a new one joins."""
    before = until(settings, lambda found: len(found["replicas"]) == 3, within_s=60.0)["serving"]
    version = "2" if before == "1" else "1"
    with Callers(replicas) as callers:
        callers.wait_for(30)
        call(settings, lambda fleet: fleet.arm("replica.before_prepare@third", "delay:30"))
        call(settings, lambda fleet: fleet.promote(MODEL, version))
        callers.wait_for(10)
        assert {found for found, *_ in serving(list(replicas.values()))} == {before}
        nodes.lose("third")
        until(settings, all_on(version, 2), within_s=60.0)
        del replicas["third"]
        callers.wait_for(30)
        nodes.add("fourth")
        replicas["fourth"] = _start_on(settings, "fourth", "fourth")
        until(settings, all_on(version, 3), within_s=60.0)
        callers.wait_for(30)
    assert callers.lost > 0, "the node was not lost"
    assert callers.refused == []
    assert callers.regressions == 0
    assert [ill for *_, ill, _ in serving(list(replicas.values()))] == [None] * 3


def test_fault_17_version_deleted_while_serving(
    settings: Settings, registry: MlflowRegistry, replicas: dict[str, Any]
) -> None:
    """Somebody deletes the model with all its versions: it serves on, and so do a new replica and a new actor."""
    status = until(settings, lambda found: len(found["replicas"]) == len(replicas), within_s=60.0)
    version = status["serving"]
    client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri, registry_uri=settings.tracking_uri)
    with Callers(replicas) as callers:
        callers.wait_for(10)
        client.delete_registered_model(MODEL)
        shutil.rmtree(settings.root / "registry" / "artifacts")
        assert registry.desired(MODEL) is None
        time.sleep(2.0)  # several polls find nothing, in real time
        replicas["late"] = _start_on(settings, "head", "late")
        until(settings, all_on(version, len(replicas)), within_s=40.0)
        ray.kill(ray.get_actor(actor_name(), namespace=NAMESPACE), no_restart=False)
        replicas["later"] = _start_on(settings, "head", "later")
        until(settings, all_on(version, len(replicas)), within_s=60.0)
        callers.wait_for(20)
    assert callers.refused == []
    assert callers.lost == 0
    assert callers.regressions == 0
    assert {found for found, *_ in serving(list(replicas.values()))} == {version}
