"""Where files come from, and on which threads: a dead registry must not delay what is on this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from release_files import release_files

from models.errors import RegistryError, ReleaseRejectedError
from models.weights.cache import ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.keys import KeyFolder
from models.weights.manifest import ONNX
from serve.depot import Depot
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Place:
    """A depot whose registry threads can all be blocked. calls: names of what ran on each kind of thread."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """Build it with version 1 in the registry."""
        self.settings = Settings(home=folder, **settings)
        self.registry, self.cache = FakeRegistry(), ReleaseCache(self.settings.cache)
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
            rule=rule_of(self.settings),
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
        assert place.remote == ["_info", "_fetch"]
        assert place.disk == ["get", "keep", "open", "open_release", "replace", "dict"]
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


def _signing(place: Place, version: str = "1") -> str:
    """Trust a key and return its signature of a version."""
    folder = KeyFolder(place.settings.keys_folder)
    if folder.signing() is None:
        folder.new("mine")
    found = folder.signing()
    assert found is not None
    return found[1].sign("m", version, place.digest)


def test_a_signature_is_judged_before_anything_is_fetched(tmp_path: Path) -> None:
    """What is signed is a digest, and the files are held to it afterwards."""

    async def story() -> None:
        place = Place(tmp_path)
        moved = _signing(place, "7")
        with pytest.raises(ReleaseRejectedError, match="does not fit"):
            await place.depot.stock("m", "1", place.digest, signature=moved)
        place.registry.sign_version("m", "1", moved)
        for call in (place.depot.stock, place.depot.files, place.depot.signature):
            with pytest.raises(ReleaseRejectedError, match="does not fit"):
                await call("m", "1", place.digest)
        assert "_fetch" not in place.remote
        assert place.depot.held == frozenset()
        assert not place.cache.has(place.digest)

    run(story())


def test_files_in_memory_prove_no_other_version(tmp_path: Path) -> None:
    """Version 2 with the content of version 1 needs a signature of its own."""

    async def story() -> None:
        place = Place(tmp_path)
        first = _signing(place)
        await place.depot.stock("m", "1", place.digest, signature=first)
        with pytest.raises(ReleaseRejectedError, match="Version 2 of m has a signature that does not fit"):
            await place.depot.stock("m", "2", place.digest, signature=first)
        found = place.depot.finding("m", "1", place.digest)
        assert found is not None
        assert found.name == "mine"
        assert place.depot.finding("m", "2", place.digest) is None

    run(story())


def test_a_signed_version_starts_without_the_registry_where_signatures_are_demanded(tmp_path: Path) -> None:
    """Its signature lies beside the cached release; another life of the actor finds it there and verifies it."""

    async def story() -> None:
        place = Place(tmp_path, require_signed=True)
        await place.depot.stock("m", "1", place.digest, signature=_signing(place))
        place.depot.keep_only(set())
        place.blocked = True
        await asyncio.wait_for(place.depot.stock("m", "1", place.digest), 1.0)
        assert await place.depot.signature("m", "1", place.digest) == _signing(place)
        KeyFolder(place.settings.keys_folder).distrust("mine")
        place.blocked = False
        with pytest.raises(ReleaseRejectedError, match="not trusted here"):
            await place.depot.files("m", "1", place.digest)

    run(story())


def test_a_version_that_was_signed_later_is_let_in(tmp_path: Path) -> None:
    """What this machine knows is not enough, so the registry is asked; without it the refusal passes."""

    async def story() -> None:
        place = Place(tmp_path, require_signed=True)
        text = _signing(place)
        with pytest.raises(ReleaseRejectedError, match="not signed"):
            await place.depot.stock("m", "1", place.digest)
        place.registry.down = True
        with pytest.raises(RegistryError):
            await place.depot.stock("m", "1", place.digest)
        place.registry.down = False
        place.registry.sign_version("m", "1", text)
        await place.depot.stock("m", "1", place.digest)
        assert place.cache.signatures.get("m", "1", place.digest) == text

    run(story())


def test_what_is_proven_stays_proven_when_the_registry_loses_the_signature(tmp_path: Path) -> None:
    """Somebody who spoils a tag keeps no sound version from starting again; a new key's signature takes over."""

    async def story() -> None:
        place = Place(tmp_path)
        text = _signing(place)
        await place.depot.stock("m", "1", place.digest, signature=text)
        for told in ("", "spoilt", None):
            await place.depot.stock("m", "1", place.digest, signature=told)
        assert await place.depot.signature("m", "1", place.digest) == text
        folder = KeyFolder(place.settings.keys_folder)
        folder.new("next")
        folder.distrust("mine")
        place.registry.sign_version("m", "1", _signing(place))
        await place.depot.stock("m", "1", place.digest)
        found = place.depot.finding("m", "1", place.digest)
        assert found is not None
        assert found.name == "next"

    run(story())


def test_a_distrusted_signature_is_not_forgotten_by_stripping_it(tmp_path: Path) -> None:
    """A registry that tells of none does not make the version pass for one that was never signed."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest, signature=_signing(place))
        KeyFolder(place.settings.keys_folder).distrust("mine")
        for told in ("", None):
            with pytest.raises(ReleaseRejectedError, match="not trusted here"):
                await place.depot.stock("m", "1", place.digest, signature=told)

    run(story())


def test_what_serves_can_be_compared_though_its_key_is_distrusted(tmp_path: Path) -> None:
    """Else no better version could take its place."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest, signature=_signing(place))
        KeyFolder(place.settings.keys_folder).distrust("mine")
        place.depot.keep_only(set())
        assert (await place.depot.contract("m", "1", place.digest)).names == ("a", "b")

    run(story())


def test_a_rollbacks_proof_waits_for_no_thread_where_nothing_is_signed(tmp_path: Path) -> None:
    """And it never asks the registry."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.depot.stock("m", "1", place.digest)
        place.disk.clear()
        place.remote.clear()
        await place.depot.prove("m", "1", place.digest, signature="")
        assert (place.disk, place.remote) == ([], [])

    run(story())
