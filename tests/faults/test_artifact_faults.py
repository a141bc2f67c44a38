"""A release's bytes are damaged, poisoned, late or too many for the disk: nothing unverified ever serves."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from planting import MODEL, labels, rewrite_manifest

from models.errors import RegistryError, ReleaseRejectedError
from models.weights.cache import ReleaseCache
from models.weights.manifest import MANIFEST, ONNX
from models.weights.mlflow_registry import MlflowRegistry
from serve.depot import Depot
from serve.faults import FaultPoints
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from running import Service

BLOCK = 64 * 1024


class Store:
    """A registry of its own with one sound release of real weights, and depots over it as a new actor makes them."""

    def __init__(self, service: Service, folder: Path) -> None:
        """Copy version 1 of the running service."""
        self.folder = folder
        (folder / "release").mkdir()
        service.registry().fetch(MODEL, "1", folder / "release")
        self.digest = rewrite_manifest(folder / "release")
        self.registry = MlflowRegistry(f"sqlite:///{folder / 'mlflow.db'}")
        self.registry.create_version(MODEL, folder / "release", tags=labels(self.digest), metrics={})
        (stored,) = (folder / "artifacts").rglob(ONNX)
        self.stored = stored.parent

    def cache(self) -> ReleaseCache:
        """Return the cache on disk."""
        return ReleaseCache(self.folder / "cache")

    def depot(self) -> Depot:
        """Return a depot that remembers nothing."""
        return Depot(
            self.registry,
            self.cache(),
            rule=rule_of(Settings(home=self.folder)),
            share=dict,
            in_thread=asyncio.to_thread,
            in_registry_thread=asyncio.to_thread,
            faults=FaultPoints(allowed=False),
        )

    def obtain(self) -> Mapping[str, Any]:
        """Return the files as a new actor would hand them out, verified."""
        files: Mapping[str, Any] = asyncio.run(self.depot().files(MODEL, "1", self.digest))
        return files

    def refuses(self) -> bool:
        """Return whether the release is refused as damaged, and nothing of it is kept."""
        with pytest.raises(ReleaseRejectedError) as refused:
            self.obtain()
        assert refused.value.permanent
        assert self.cache().get(self.digest) is None
        return True


@pytest.fixture(scope="module")
def store(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store whose release is sound, which is shown, too: a test that could not pass would prove nothing."""
    found = Store(service, tmp_path_factory.mktemp("store"))
    assert set(found.obtain()) >= {ONNX, MANIFEST}
    return found


@pytest.fixture
def damaged(store: Store) -> Any:
    """Return a function that changes one stored file; afterwards the store is sound again and the cache empty."""
    kept = {path: path.read_bytes() for path in store.stored.rglob("*") if path.is_file()}

    def damage(name: str, change: Callable[[bytes], bytes]) -> None:
        path = store.stored / name
        path.write_bytes(change(kept[path]))

    shutil.rmtree(store.folder / "cache", ignore_errors=True)
    yield damage
    for path, data in kept.items():
        path.write_bytes(data)


HALVES: dict[str, Callable[[bytes], bytes]] = {
    "no byte": lambda data: data[:0],
    "1 percent": lambda data: data[: len(data) // 100],
    "50 percent": lambda data: data[: len(data) // 2],
    "99 percent": lambda data: data[: len(data) * 99 // 100],
    "all but one byte": lambda data: data[:-1],
    "one byte too many": lambda data: data + b"\0",
    "a hole at the start": lambda data: bytes(BLOCK) + data[BLOCK:],
    "a hole in the middle": lambda data: data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :],
    "a hole at the end": lambda data: data[:-BLOCK] + bytes(BLOCK),
}


@pytest.mark.sample
@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.replace(" ", "-"))
def test_fault_03_half_written_artifact(store: Store, damaged: Any, half: str) -> None:
    """Weights that were not written to their end, or with holes that a loader would not notice, are refused."""
    damaged(ONNX, HALVES[half])
    assert store.refuses()


def test_fault_03_half_written_artifact_lacks_a_file(store: Store, damaged: Any) -> None:
    """A store that lost a whole file, manifest included, is as bad."""
    damaged(ONNX, lambda data: data)
    for name in (ONNX, MANIFEST):
        kept = (store.stored / name).read_bytes()
        (store.stored / name).unlink()
        assert store.refuses()
        (store.stored / name).write_bytes(kept)


@pytest.mark.sample
def test_fault_04_checksum_mismatch(store: Store, damaged: Any) -> None:
    """Sixty bits flipped at random places of all files, one at a time: sixty refusals."""
    draw = random.Random(4)  # noqa: S311 - a draw, no secret
    names = sorted(path.name for path in store.stored.iterdir() if path.is_file())
    refused = 0
    for _ in range(60):
        name = draw.choice([ONNX, *names])
        place = draw.random()

        def flip(data: bytes, place: float = place) -> bytes:
            flipped = bytearray(data)
            flipped[int(place * len(data))] ^= 1 << draw.randrange(8)
            return bytes(flipped)

        damaged(name, flip)
        refused += store.refuses()
        damaged(name, lambda data: data)
    assert refused == 60
    assert store.obtain()


POISONS: dict[str, Callable[[Path], object]] = {
    "a bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "other weights": lambda path: path.write_bytes(b"other weights"),
    "other weights and a manifest to match": lambda path: (
        path.write_bytes(b"other weights"),
        rewrite_manifest(path.parent),
    ),
    "a link": lambda path: (path.rename(path.with_suffix(".moved")), path.symlink_to("/etc/hostname")),
    "a file more": lambda path: path.with_name("more.pkl").write_bytes(b"cos\nsystem\n"),
    "a file less": lambda path: path.unlink(),
}


@pytest.mark.sample
@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.replace(" ", "-"))
def test_fault_14_poisoned_cache(store: Store, damaged: Any, poison: str) -> None:
    """A cached release that somebody has edited is refused, fetched anew and replaced."""
    damaged(ONNX, lambda data: data)
    sound = {name: bytes(array) for name, array in store.obtain().items()}
    folder = store.folder / "cache" / "releases" / store.digest
    assert folder.stat().st_mode & 0o077 == 0
    POISONS[poison](folder / ONNX)
    assert {name: bytes(array) for name, array in store.obtain().items()} == sound
    cached = store.cache().get(store.digest)
    assert cached is not None
    assert {name: bytes(array) for name, array in cached.items()} == sound


def test_fault_14_poisoned_cache_without_a_registry(service: Service, tmp_path: Path) -> None:
    """Where it cannot be fetched anew either, nothing is served: the reason is the registry, and it may be retried."""
    store = Store(service, tmp_path)
    store.obtain()
    POISONS["other weights"](store.folder / "cache" / "releases" / store.digest / ONNX)
    store.registry = MlflowRegistry("http://127.0.0.1:9")
    with pytest.raises(RegistryError):
        store.obtain()
