"""Where files come from, and on which threads: a dead registry must not delay what is on this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from release_files import release_files

from models.errors import RegistryError
from models.weights.cache import ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.manifest import ONNX
from serve.depot import Depot
from serve.fake_time import run
from serve.faults import FaultPoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Place:
    """A depot whose registry threads can all be blocked. calls: names of what ran on each kind of thread."""

    def __init__(self, folder: Path) -> None:
        """Build it with version 1 in the registry."""
        self.registry, self.cache = FakeRegistry(), ReleaseCache(folder / "cache")
        self.digest, files = release_files(1)
        (folder / "v1").mkdir()
        for name, data in files.items():
            (folder / "v1" / name).write_bytes(data)
        self.registry.create_version("m", folder / "v1", tags={}, metrics={})
        self.blocked = False
        self.disk: list[str] = []
        self.remote: list[str] = []
        self.depot = Depot(
            self.registry,
            self.cache,
            share=dict,
            in_thread=self._on_disk,
            in_registry_thread=self._on_registry,
            faults=FaultPoints(allowed=False),
        )

    async def _on_disk(self, call: Callable[..., Any], *args: object, **named: object) -> Any:
        self.disk.append(getattr(call, "__name__", "share"))
        return call(*args, **named)

    async def _on_registry(self, call: Callable[..., Any], *args: object, **named: object) -> Any:
        self.remote.append(getattr(call, "__name__", "?"))
        if self.blocked:
            await asyncio.Event().wait()
        return call(*args, **named)


def test_only_the_download_runs_on_the_threads_of_the_registry(tmp_path: Path) -> None:
    """Reading the cache, verifying, storing and sharing wait for no registry."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest)
        assert place.remote == ["_fetch"]
        assert place.disk == ["open", "open_release", "replace", "dict"]
        assert place.depot.held == {place.digest}

    run(story())


def test_a_cached_release_is_here_though_every_thread_of_the_registry_is_blocked(tmp_path: Path) -> None:
    """A cold start without a registry takes no longer than reading the disk."""

    async def story() -> None:
        place = Place(tmp_path)
        _, files = release_files(1)
        place.cache.put(place.digest, {name: np.frombuffer(data, np.uint8) for name, data in files.items()})
        place.blocked = True
        await asyncio.wait_for(place.depot.stock("m", "1", place.digest), 1.0)
        assert place.remote == []

    run(story())


def test_what_is_not_kept_is_let_go(tmp_path: Path) -> None:
    """Memory holds no release that nobody wants."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest)
        place.depot.keep_only({"other"})
        assert place.depot.held == frozenset()

    run(story())


def _graph(folder: Path) -> Path:
    (found,) = folder.rglob(ONNX)
    return found


def test_where_a_release_came_from_is_known_until_it_is_let_go(tmp_path: Path) -> None:
    """Health tells of a start that rests on the cache alone."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest)
        assert not place.depot.from_cache(place.digest)
        place.depot.keep_only(set())
        await place.depot.stock("m", "1", place.digest)
        assert place.depot.from_cache(place.digest)
        place.depot.keep_only(set())
        assert not place.depot.from_cache(place.digest)

    run(story())


def test_a_damaged_copy_is_named_while_there_is_no_registry_and_replaced_once_there_is(tmp_path: Path) -> None:
    """Not only at the first try: the rollout repeats it, and its last word is what people read."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest)
        place.depot.keep_only(set())
        graph = _graph(tmp_path / "cache")
        graph.write_bytes(b"grape 1")
        place.registry.down = True
        for _ in range(2):
            with pytest.raises(RegistryError, match=r"version 1 of m .*digest differs.* cannot be reached"):
                await place.depot.stock("m", "1", place.digest)
        assert not place.depot.from_cache(place.digest)
        place.registry.down = False
        await place.depot.stock("m", "1", place.digest)
        assert graph.read_bytes() == b"graph 1"

    run(story())


def test_without_a_copy_the_registrys_own_error_comes_out(tmp_path: Path) -> None:
    """Nothing is damaged then."""

    async def story() -> None:
        place = Place(tmp_path)
        place.registry.down = True
        with pytest.raises(RegistryError) as told:
            await place.depot.stock("m", "1", place.digest)
        assert "damaged" not in str(told.value)

    run(story())
