"""The disk is full or the artifact store is slow: what serves does not notice, and nothing is fetched twice."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clients import Clients
from full_disk import SMALL
from planting import MODEL, plant_at, rewrite_manifest
from store import ArtifactStore
from verdicts import converged, latencies, nobody_suffered, quantile

from models.weights.cache import ReleaseCache
from models.weights.manifest import ONNX
from serve.depot import Depot
from serve.faults import FaultPoints
from serve.rollout_actor import registry_threads
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from running import Service

WINDOW_S = 5.0


def _on_tmpfs(folder: Path) -> list[str]:
    mount = f"mount -t tmpfs -o size=1m none {folder} && exec {sys.executable} {full_disk()} {folder}"
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]


def full_disk() -> Path:
    """Return the program that fills a disk."""
    return Path(__file__).with_name("full_disk.py")


@pytest.mark.sample
@pytest.mark.parametrize("kind", ["tmpfs", "rlimit"])
def test_fault_15_disk_full(tmp_path: Path, kind: str) -> None:
    """A release that does not fit is a passing fault; what serves and its record stay whole; no partial one is left."""
    if kind == "tmpfs":
        command, limit = _on_tmpfs(tmp_path), None
    else:
        command = [sys.executable, str(full_disk()), str(tmp_path)]
        limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2 * SMALL, 2 * SMALL))
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )
    if kind == "tmpfs" and ("unshare" in ended.stderr or "mount" in ended.stderr):
        pytest.skip(f"this machine lets nobody mount a disk of his own: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["full"]
    assert "free disk space" in found["said"]
    assert found["steps"] == ["fetch", "commit"]
    assert found["stored"] == ["a" * 64]
    assert found["intact"]
    assert found["record"] == "1"
    assert found["partials"] == []
    assert found["again"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArtifactStore]:
    """Return an artifact store over HTTP with an empty folder."""
    root = tmp_path / "store"
    root.mkdir()
    with ArtifactStore(root) as running:
        yield running


def _release_in(store: ArtifactStore, service: Service, name: str, mark: float) -> str:
    """Put a copy of version 2 into the store; return the number under which the registry knows it."""
    folder = store.root / name
    folder.mkdir()
    service.registry().fetch(MODEL, "2", folder)
    return plant_at(service, store.url(name), rewrite_manifest(folder, metrics={"planted": mark}))


def test_fault_16_slow_store(service: Service, store: ArtifactStore) -> None:
    """While a release arrives at 1 KB/s clients wait no longer than before, and another version can be promoted."""
    service.settle("1")
    late = _release_in(store, service, "late", 16.0)
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        quiet = time.monotonic()
        time.sleep(WINDOW_S)
        store.bytes_per_s = 1024
        assert service.promote(late).status_code == 200
        begun = time.monotonic()
        while not any(name.endswith(ONNX) for name in store.downloads):
            assert time.monotonic() < begun + 60.0, service.rollout()
            time.sleep(0.1)
        slow = time.monotonic()
        time.sleep(WINDOW_S)
        over = time.monotonic()
        assert service.rollout()["serving"] == "1"
        service.promote("2")
        converged(service, "2")
        store.bytes_per_s = None
        service.promote(late)
        converged(service, late)
    nobody_suffered(load)
    before = latencies(e for e in load.exchanges if quiet <= e.sent < quiet + WINDOW_S)
    during = latencies(e for e in load.exchanges if slow <= e.sent < over)
    assert quantile(during, 0.99) <= 2.0 * quantile(before, 0.99), (quantile(before, 0.99), quantile(during, 0.99))
    service.settle("1")


class Pool:
    """The rollout actor's threads for the registry."""

    def __init__(self) -> None:
        """Make them."""
        self._threads = ThreadPoolExecutor(registry_threads(1))

    async def run(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Run a blocking call on one of them."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def close(self) -> None:
        """Wait until they have ended."""
        self._threads.shutdown()


def _depot(service: Service, folder: Path, pool: Pool) -> Depot:
    return Depot(
        service.registry(),
        ReleaseCache(folder / "cache"),
        rule=rule_of(Settings(home=folder)),
        share=dict,
        in_thread=asyncio.to_thread,
        in_registry_thread=pool.run,
        faults=FaultPoints(allowed=False),
    )


@pytest.mark.sample
def test_fault_16_slow_store_leaves_threads_for_the_alias(
    service: Service, store: ArtifactStore, tmp_path: Path
) -> None:
    """However often downloads are given up and tried again, one a release is under way, and the alias can be read."""
    store.bytes_per_s = 100
    digests = {}
    for number in range(3):
        name = f"late{number}"
        version = _release_in(store, service, name, 160.0 + number)
        digests[version] = service.registry().version(MODEL, version).digest
    pool = Pool()

    async def story() -> object:
        depot = _depot(service, tmp_path, pool)
        for _ in range(registry_threads(1)):
            for version, digest in digests.items():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(depot.stock(MODEL, version, digest), 0.4)
        return await asyncio.wait_for(pool.run(service.registry().desired, MODEL), 10.0)

    try:
        assert asyncio.run(story()) is not None
        asked = [name for name in store.downloads if name.endswith(ONNX)]
        assert len(asked) == len(set(asked)), asked
    finally:
        store.bytes_per_s = None
        pool.close()


@pytest.mark.sample
def test_fault_25_thundering_download(service: Service, store: ArtifactStore, tmp_path: Path) -> None:
    """Eight replicas that need one release at the same moment cost the store one download of each file."""
    version = _release_in(store, service, "wanted", 25.0)
    digest = service.registry().version(MODEL, version).digest
    store.bytes_per_s = 20_000_000
    pool = Pool()

    async def story() -> None:
        depot = _depot(service, tmp_path, pool)
        found = await asyncio.gather(*(depot.files(MODEL, version, digest) for _ in range(8)))
        assert all(files is found[0] for files in found)
        # The next life of the actor, on the same machine, has the cache.
        await _depot(service, tmp_path, pool).files(MODEL, version, digest)

    try:
        asyncio.run(story())
    finally:
        pool.close()
    assert len(store.downloads) == len(set(store.downloads)) >= 2, store.downloads


def test_fault_25_thundering_download_of_a_service(service: Service, store: ArtifactStore) -> None:
    """A promotion brings every file from the store once, however many replicas load it."""
    service.settle("1")
    version = _release_in(store, service, "wanted", 25.5)
    service.promote(version)
    converged(service, version)
    assert len(store.downloads) == len(set(store.downloads)) >= 2, store.downloads
    service.settle("1")
