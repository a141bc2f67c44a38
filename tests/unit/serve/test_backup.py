"""A home folder in one file, and back: whole, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import SettingsError
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.registry import DIGEST_TAG
from serve.backup import BackupError, back_up
from serve.home import FORMAT, read_format
from serve.restore import restore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE, TWO = "ab" * 32, "cd" * 32


def silent(_step: str, _fraction: float) -> None:
    """Show no progress."""


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with a real registry, two cached releases of which one is needed, a record, an audit and logs."""
    home = tmp_path_factory.mktemp("old") / "home"
    files = tmp_path_factory.mktemp("files")
    (files / "golden").mkdir()
    (files / "model.onnx").write_bytes(b"graph")
    (files / "golden" / "a.jpg").write_bytes(b"jpg")
    registry = MlflowRegistry(f"sqlite:///{home}/registry/mlflow.db")
    registry.create_version("checkout", files, tags={DIGEST_TAG: ONE}, metrics={})
    registry.promote("checkout", "1", promotion="p", reason="test")
    cache = ReleaseCache(home / "cache")
    for digest in (ONE, TWO):
        cache.put(digest, {"model.onnx": np.frombuffer(b"graph", np.uint8)})
    CommittedStore(home).save(Committed("checkout", 3, "1", ONE))
    for place in ("audit/rollout.jsonl", "logs/a/driver.log", "cache/engines/x", "service.json", "service.lock"):
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        (home / place).write_text("{}\n")
    return home


@pytest.fixture(name="file")
def _file(home: Path, tmp_path: Path) -> Path:
    """Return a backup of the home."""
    back_up(home, tmp_path / "home.tar", progress=silent)
    return tmp_path / "home.tar"


def test_a_home_comes_back_somewhere_else(home: Path, file: Path, tmp_path: Path) -> None:
    """Registry, weights, what serves and audit; nothing points at the old place; logs and locks stay behind."""
    moved = home.with_name("moved")
    home.rename(moved)
    try:
        done = restore(file, tmp_path / "deep" / "new", progress=silent)
        new = tmp_path / "deep" / "new"
        registry = MlflowRegistry(f"sqlite:///{new}/registry/mlflow.db")
        fetched = tmp_path / "fetched"
        fetched.mkdir()
        registry.fetch("checkout", "1", fetched)
        desired = registry.desired("checkout")
        again = tmp_path / "more"
        again.mkdir()
        (again / "model.onnx").write_bytes(b"second")
        registry.create_version("checkout", again, tags={DIGEST_TAG: TWO}, metrics={})
    finally:
        assert not home.exists()
        moved.rename(home)
    assert (fetched / "model.onnx").read_bytes() == b"graph"
    assert (fetched / "golden" / "a.jpg").read_bytes() == b"jpg"
    assert desired is not None
    assert (desired.version, desired.promotion) == ("1", "p")
    assert CommittedStore(new).load("checkout") == Committed("checkout", 3, "1", ONE)
    assert ReleaseCache(new / "cache").get(ONE) is not None
    assert ReleaseCache(new / "cache").get(TWO) is None
    assert (new / "audit" / "rollout.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in new.iterdir()) == ["audit", "cache", "committed", "home.json", "registry"]
    assert read_format(new) == FORMAT
    assert done.registry
    assert done.home_format == 1


def test_what_is_backed_up_is_the_owners_alone(file: Path, tmp_path: Path) -> None:
    """Weights are worth money: neither the file nor the home it becomes is for others, and no names of users leak."""
    restore(file, tmp_path / "new", progress=silent)
    for path in (file, *(path for path in (tmp_path / "new").rglob("*") if path.is_file())):
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    with tarfile.open(file) as tar:
        assert {(info.uid, info.gid, info.uname, info.gname) for info in tar} == {(0, 0, "", "")}


def test_a_registry_that_is_written_to_is_whole_in_the_backup(home: Path, tmp_path: Path) -> None:
    """The snapshot is one transaction's state: pairs that are written together are there together."""
    busy = tmp_path / "busy"
    (busy / "registry").mkdir(parents=True)
    shutil.copy(home / "registry" / "mlflow.db", busy / "registry" / "mlflow.db")
    with sqlite3.connect(busy / "registry" / "mlflow.db") as opened:
        opened.execute("CREATE TABLE pairs (a INTEGER, b BLOB)")
    stop = threading.Event()
    begun = threading.Event()

    def write() -> None:
        with sqlite3.connect(busy / "registry" / "mlflow.db", timeout=30) as database:
            while not stop.is_set():
                with database:
                    database.execute("INSERT INTO pairs VALUES (1, zeroblob(2000))")
                    database.execute("INSERT INTO pairs VALUES (2, zeroblob(2000))")
                begun.set()
                stop.wait(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(10)
        for number in range(3):
            back_up(busy, tmp_path / f"{number}.tar", progress=silent)
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        restore(tmp_path / f"{number}.tar", tmp_path / f"new{number}", progress=silent)
        with sqlite3.connect(tmp_path / f"new{number}" / "registry" / "mlflow.db") as opened:
            ones, twos = opened.execute("SELECT sum(a = 1), sum(a = 2) FROM pairs").fetchone()
        assert ones == twos > 0


def test_a_backup_overwrites_nothing(home: Path, file: Path) -> None:
    """The last good backup must survive a slip."""
    before = file.read_bytes()
    with pytest.raises(BackupError, match="exists already"):
        back_up(home, file, progress=silent)
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["home.tar"]


def test_a_backup_that_fails_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """An empty home, a newer one, a link in it: one line each, and no file."""
    (tmp_path / "empty").mkdir()
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "home.json").write_text('{"format": 9}')
    linked = tmp_path / "linked"
    shutil.copytree(home, linked)
    (linked / "registry" / "artifacts" / "away").symlink_to("/etc")
    target = tmp_path / "out"
    target.mkdir()
    for place, words in (("empty", "nothing to back up"), ("newer", "newer release"), ("linked", "is a link")):
        with pytest.raises((BackupError, SettingsError), match=words):
            back_up(tmp_path / place, target / "b.tar", progress=silent)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("content", ["file", "folder", "link"])
def test_only_an_empty_home_is_restored_into(file: Path, tmp_path: Path, content: str) -> None:
    """What is there stays as it is."""
    home = tmp_path / "there"
    if content == "file":
        home.write_text("mine")
    elif content == "folder":
        home.mkdir()
        (home / "mine").write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir()
        home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackupError, match="is not empty"):
        restore(file, home, progress=silent)
    assert content == "link" or "mine" in (home if content == "file" else home / "mine").read_text()
    (tmp_path / "made").mkdir()
    restore(file, tmp_path / "made", progress=silent)
    assert (tmp_path / "made" / "registry").is_dir()


def members(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Return a backup's entries."""
    with tarfile.open(file) as tar:
        return [(info, (tar.extractfile(info) or io.BytesIO()).read()) for info in tar]


def write(file: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write a tar of these entries."""
    with tarfile.open(file, "w") as tar:
        for info, data in entries:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return file


def forged(file: Path, name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    """Put one more entry into a backup, with a sound sum in its manifest."""
    entries = members(file)
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    manifest = json.loads(entries[-1][1])
    manifest["files"][name] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
    entries[-1] = (entries[-1][0], json.dumps(manifest).encode())
    entries.insert(-1, (info, b"evil"))
    return write(file, entries)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, tarfile.REGTYPE) for name in ("/etc/evil", "../evil", "audit/../../evil", "audit//evil", "./audit/e")),
        *((name, tarfile.REGTYPE) for name in ("service.json", "evil", "registry/evil", "audit", "audit\\..\\evil")),
        *(("audit/evil", kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)),
        ("audit/evil", tarfile.DIRTYPE),
        ("audit/rollout.jsonl", tarfile.REGTYPE),
    ],
)
def test_nothing_is_written_outside_the_home(file: Path, tmp_path: Path, name: str, kind: bytes) -> None:
    """Whoever made the file: paths out of the home, links, devices, places of no backup and names twice are refused."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BackupError, match="nothing was restored"):
        restore(forged(file, name, kind=kind, link="/etc/passwd"), tmp_path / "new", progress=silent)
    assert sorted(tmp_path.iterdir()) == before


def test_one_changed_byte_of_any_file_is_refused(file: Path, tmp_path: Path) -> None:
    """In a sound archive, of the right length: only the sums of the manifest tell."""
    entries = members(file)
    assert {info.name.partition("/")[0] for info, _ in entries[1:-1]} == {"registry", "committed", "audit", "cache"}
    for number, (info, data) in enumerate(entries[1:-1], start=1):
        changed = bytes([data[0] ^ 1]) + data[1:]
        write(tmp_path / "changed.tar", [*entries[:number], (info, changed), *entries[number + 1 :]])
        with pytest.raises(BackupError, match=f"{re.escape(info.name[:80])}' with other bytes"):
            restore(tmp_path / "changed.tar", tmp_path / "new", progress=silent)
        assert not (tmp_path / "new").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_is_restored(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A flipped bit is refused, or stands in what a tar does not mean: the home is the one that was backed up."""
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "changed.tar").write_bytes(bytes(changed))
    new = tmp_path / "new"
    try:
        restore(tmp_path / "changed.tar", new, progress=silent)
    except (BackupError, SettingsError):
        assert not new.exists()
    else:
        assert (new / "audit" / "rollout.jsonl").read_text() == "{}\n"
        assert CommittedStore(new).load("checkout") is not None
        (stored,) = (new / "registry" / "artifacts").rglob("model.onnx")
        assert stored.read_bytes() == b"graph"
        shutil.rmtree(new)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    """A copy that was interrupted has no manifest."""
    size = sum(512 + -(-len(data) // 512) * 512 for _, data in members(file))
    os.truncate(file, int(size * share))
    with pytest.raises(BackupError):
        restore(file, tmp_path / "new", progress=silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home.tar"]


@pytest.mark.parametrize("content", [b"", b"x" * 2000, b"\0" * 10240])
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    """Another kind of file, and an empty tar."""
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(BackupError):
        restore(tmp_path / "other", tmp_path / "new", progress=silent)


def test_an_age_that_no_file_can_have_is_left_out(tmp_path: Path) -> None:
    """A forged archive may claim any; its bytes are checked all the same, and nothing crashes."""
    data = b"{}"
    opened = json.dumps({"format": 1, "home_format": FORMAT}).encode()
    sums = {"audit/x": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    file = tmp_path / "old.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in (
            ("backup.json", opened),
            ("audit/x", data),
            ("manifest.json", json.dumps({"files": sums}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.pax_headers = {"mtime": "1e400"} if name == "audit/x" else {}
            tar.addfile(member, io.BytesIO(content))
    restore(file, tmp_path / "home", progress=silent)
    assert (tmp_path / "home" / "audit" / "x").read_bytes() == data


def head(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    """Return what changes a backup's first entry."""

    def apply(file: Path) -> Path:
        entries = members(file)
        document = json.loads(entries[0][1])
        change(document)
        return write(file, [(entries[0][0], json.dumps(document).encode()), *entries[1:]])

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head.update(format=3), "newer release of Steelyard \\(format 3 of the backup, this one knows 2"),
        (lambda head: head.update(home_format=9), "format 9 of the home folder"),
        (lambda head: head.pop("format"), "names no format"),
        (lambda head: head.update(home_format="1"), "names no format"),
    ],
)
def test_a_newer_or_unknown_format_is_refused(
    file: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    """Before anything is unpacked, with the numbers."""
    with pytest.raises(BackupError, match=words):
        restore(head(change)(file), tmp_path / "new", progress=silent)
    assert not (tmp_path / "new").exists()


def test_the_shares_of_progress_rise(home: Path, tmp_path: Path) -> None:
    """People watch both go from none to nearly all."""
    seen: list[float] = []
    back_up(home, tmp_path / "b.tar", progress=lambda _step, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] <= seen[-1] <= 1.0
    seen.clear()
    restore(tmp_path / "b.tar", tmp_path / "new", progress=lambda _step, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0.0 < seen[-1] <= 1.0
