"""The release cache and the committed record: atomic, private, honest about damage."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.manifest import MANIFEST, ONNX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Files = dict[str, NDArray[np.uint8]]
DIGEST = "ab" * 32


def test_what_is_put_comes_back(release_files: Files, tmp_path: Path) -> None:
    """All files of a release, byte for byte."""
    cache = ReleaseCache(tmp_path)
    assert cache.get(DIGEST) is None
    cache.put(DIGEST, release_files)
    found = cache.get(DIGEST)
    assert found is not None
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in release_files.items()
    }


def digest_of(files: Files) -> str:
    """Return the digest under which a release is known."""
    return hashlib.sha256(files[MANIFEST].tobytes()).hexdigest()


def test_a_sound_copy_opens(release_files: Files, tmp_path: Path) -> None:
    """Verified, and nothing at all where there is none or somebody still writes it."""
    cache, digest = ReleaseCache(tmp_path), digest_of(release_files)
    (tmp_path / "releases" / f".partial-{digest}").mkdir(parents=True)
    assert cache.open("m", "3", digest) is None
    cache.put(digest, release_files)
    release = cache.open("m", "3", digest)
    assert release is not None
    assert (release.version, release.digest, set(release.files)) == ("3", digest, set(release_files))


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _alter(path: Path) -> None:
    path.write_bytes(b"GRAPH")


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def _vanish(path: Path) -> None:
    path.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "shortened": (_shorten, "4 bytes instead of 5"),
    "altered": (_alter, "digest differs, {altered} instead of {sound}$"),
    "a link": (_link, "is a link or a device"),
    "gone": (_vanish, "model.onnx is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_named_until_it_is_replaced(release_files: Files, tmp_path: Path, damage: str) -> None:
    """Version, release, file and digests; it stays, so that the next start can say the same."""
    cache, digest = ReleaseCache(tmp_path), digest_of(release_files)
    cache.put(digest, release_files)
    change, words = DAMAGES[damage]
    altered, sound = (hashlib.sha256(data).hexdigest()[:12] for data in (b"GRAPH", b"graph"))
    words = words.format(altered=altered, sound=sound)
    change(tmp_path / "releases" / digest / ONNX)
    for _ in range(2):
        with pytest.raises(
            ReleaseFaultError, match=f"version 3 of m .release {digest[:12]}. is damaged: .*{words}"
        ) as told:
            cache.open("m", "3", digest)
        assert (told.value.step, told.value.permanent) == ("verify", False)
    cache.replace(digest, release_files)
    assert cache.open("m", "3", digest) is not None


def test_a_copy_that_the_disk_does_not_give_back_is_damaged_too(
    release_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's own word is told."""
    cache, digest = ReleaseCache(tmp_path), digest_of(release_files)
    cache.put(digest, release_files)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("models.weights.release.os.open", fail)
    with pytest.raises(ReleaseFaultError, match=r"is damaged: its files cannot be read \(Input/output error\)"):
        cache.open("m", "3", digest)


def test_a_copy_that_was_never_a_detector_is_refused_for_good(release_files: Files, tmp_path: Path) -> None:
    """As registered, byte for byte: no other copy would be better."""
    data = json.dumps(json.loads(release_files[MANIFEST].tobytes()) | {"names": []}).encode()
    digest = hashlib.sha256(data).hexdigest()
    cache = ReleaseCache(tmp_path)
    cache.put(digest, {MANIFEST: np.frombuffer(data, np.uint8)})
    with pytest.raises(ReleaseRejectedError) as told:
        cache.open("m", "3", digest)
    assert told.value.step == "contract"


def test_cached_files_are_private_and_no_partial_remains(release_files: Files, tmp_path: Path) -> None:
    """Files have mode 0600; the temporary folder is gone."""
    cache = ReleaseCache(tmp_path)
    cache.put(DIGEST, release_files)
    cache.put(DIGEST, release_files)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert [path.name for path in (tmp_path / "releases").iterdir()] == [DIGEST]


def test_a_dropped_release_is_gone_and_can_be_put_again(release_files: Files, tmp_path: Path) -> None:
    """A poisoned entry is replaced by dropping and putting."""
    cache = ReleaseCache(tmp_path)
    cache.drop(DIGEST)
    cache.put(DIGEST, {"model.onnx": np.zeros(3, np.uint8)})
    cache.drop(DIGEST)
    assert cache.get(DIGEST) is None
    cache.put(DIGEST, release_files)
    assert set(cache.get(DIGEST) or {}) == set(release_files)


def test_pruning_keeps_what_is_named(tmp_path: Path) -> None:
    """Everything else goes."""
    cache = ReleaseCache(tmp_path)
    assert cache.prune([]) == []
    for digest in (DIGEST, "cd" * 32):
        cache.put(digest, {"model.onnx": np.zeros(3, np.uint8)})
    assert cache.prune([DIGEST]) == ["cd" * 32]
    assert cache.get(DIGEST) is not None


def test_a_release_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    """File names come from a registry that may have been tampered with."""
    cache = ReleaseCache(tmp_path / "cache")
    for name in ("../../evil", "/tmp/evil"):  # noqa: S108 - the point of the test
        with pytest.raises(ReleaseRejectedError):
            cache.put(DIGEST, {name: np.zeros(1, np.uint8)})
    assert not (tmp_path / "evil").exists()
    assert cache.get(DIGEST) is None


def test_a_digest_cannot_be_a_path(tmp_path: Path) -> None:
    """Only 64 hex digits name a folder of the cache."""
    with pytest.raises(ReleaseRejectedError):
        ReleaseCache(tmp_path).get("../x")


def test_a_full_disk_is_a_passing_fault_that_leaves_nothing(
    release_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollout may retry; no half release is ever visible."""
    cache = ReleaseCache(tmp_path)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.weights.cache.os.fsync", fail)
    with pytest.raises(ReleaseFaultError, match="No space left"):
        cache.put(DIGEST, release_files)
    assert cache.get(DIGEST) is None
    assert list((tmp_path / "releases").iterdir()) == []
    with pytest.raises(ReleaseFaultError) as caught:
        CommittedStore(tmp_path).save(Committed("m", 1, "1", DIGEST))
    assert caught.value.step == "commit"
    assert list((tmp_path / "committed").iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(generation=st.integers(0, 2**40), previous=st.none() | st.text(max_size=8), text=st.none() | st.text(max_size=8))
def test_the_committed_record_reads_back(
    tmp_path: Path, generation: int, previous: str | None, text: str | None
) -> None:
    """Law: load returns what save got last."""
    store = CommittedStore(tmp_path)
    record = Committed("m", generation, "4", DIGEST, previous, previous, pin=text, rejections=text)
    store.save(record)
    assert store.load("m") == record
    assert store.load("other") is None


def test_a_committed_record_of_an_earlier_steelyard_is_read(tmp_path: Path) -> None:
    """It knew of no rejections."""
    record = {"model": "m", "generation": 3, "version": "4", "digest": DIGEST, "previous_version": None,
              "previous_digest": None, "pin": None, "promotion": "p"}  # fmt: skip
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed" / "m.json").write_text(json.dumps({"record": record, "sha256": sha256}))
    assert CommittedStore(tmp_path).load("m") == Committed("m", 3, "4", DIGEST, promotion="p")


def test_a_damaged_committed_record_is_ignored(tmp_path: Path) -> None:
    """A record that does not carry its own digest names nothing that could serve."""
    store = CommittedStore(tmp_path)
    store.save(Committed("m", 3, "4", DIGEST))
    path = tmp_path / "committed" / "m.json"
    path.write_bytes(path.read_bytes().replace(b'"generation": 3', b'"generation": 9'))
    assert store.load("m") is None
    path.write_bytes(b"[1")
    assert store.load("m") is None
    path.write_bytes(b'{"record": [], "sha256": ""}')
    assert store.load("m") is None


def test_a_model_name_cannot_be_a_path(tmp_path: Path) -> None:
    """The record's file is named by the model."""
    with pytest.raises(ReleaseRejectedError):
        CommittedStore(tmp_path).load("../m")


def test_all_committed_records_are_listed(tmp_path: Path) -> None:
    """Of every model that ever served here; a damaged one names nothing."""
    store = CommittedStore(tmp_path)
    assert store.records() == []
    one, two = Committed("a.b", 1, "4", DIGEST), Committed("m", 2, "5", "cd" * 32, "4", DIGEST)
    for record in (one, two, Committed("x", 1, "1", DIGEST)):
        store.save(record)
    (tmp_path / "committed" / "x.json").write_bytes(b"[1")
    (tmp_path / "committed" / ".partial-1-m.json").write_bytes(b"")
    assert store.records() == [one, two]


def test_pruning_removes_what_a_dead_process_left_half_written(tmp_path: Path) -> None:
    """A partial release older than an hour goes; one that may still be written stays."""
    cache = ReleaseCache(tmp_path)
    cache.put(DIGEST, {"model.onnx": np.zeros(3, np.uint8)})
    old, fresh = (tmp_path / "releases" / f".partial-{name}" for name in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    past = time.time() - 3700.0
    os.utime(old, (past, past))
    assert cache.prune([DIGEST]) == []
    assert (old.exists(), fresh.exists()) == (False, True)
