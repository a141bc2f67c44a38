"""Backup of a home folder into one tar file, safe beside a running service.

The file holds, in this order: ``backup.json`` (formats, release, where the artifacts lay), the home's files under their
own names, and ``manifest.json`` (SHA-256 and size of each), so that a file cut short has no manifest. Registry first,
files second: what the snapshot of the database names was there before it was taken.

Taken are the registry and its artifacts, the committed records, the cached releases that these need with their
signatures, and the audit. Logs, the rest of the cache and engines that a runtime built are made anew. Keys are never
taken: whoever may read a backup could sign, and whoever may change one could have their own key trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from models.errors import SteelyardError
from models.weights.cache import CommittedStore
from serve.home import FORMAT_FILE, UNNUMBERED, check_format, read_format
from serve.in_use import digests_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BACKUP_FORMAT: Final = 2
"""2 may hold signatures in the cache, which releases that know format 1 only would refuse as strange files."""
HEAD: Final = "backup.json"
MANIFEST: Final = "manifest.json"
DATABASE: Final = "registry/mlflow.db"
ARTIFACTS: Final = "registry/artifacts"
CACHED: Final = ("releases", "signatures")
"""Folders of the cache that are taken, for the releases that records need."""
SNAPSHOT_DEADLINE_S: Final = 120.0
PARTIAL: Final = ".partial-"
_PAGES: Final = 1024


class BackupError(SteelyardError):
    """A backup cannot be made, or a file cannot be restored."""

    code = "backup_refused"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds. created: UTC, ISO 8601. size: of all its files (bytes). registry: the database is in it."""

    files: int
    size: int
    created: str
    home_format: int
    registry: bool


def back_up(home: Path, file: Path, *, progress: Callable[[str, float], None]) -> Summary:
    """Write the home folder ``home`` into ``file``, which must not exist; blocks. Other users cannot read it.

    progress: called with the step and the fraction done, 0 to 1.
    Raises BackupError or SettingsError in one sentence, OSError where the disk refuses; no partial file remains.
    """
    check_format(home)
    if file.exists():
        msg = f"{file} exists already; choose another name for the backup"
        raise BackupError(msg)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=PARTIAL)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as out, tempfile.TemporaryDirectory(dir=file.parent, prefix=PARTIAL) as scratch:
            progress("registry", 0.0)
            database = _snapshot(home / DATABASE, Path(scratch) / "mlflow.db")
            summary = _write(home, database, out, progress)
            out.flush()
            os.fsync(out.fileno())
        try:
            # Fails where the name was taken meanwhile, as a rename would not.
            os.link(partial, file)
        except FileExistsError:
            msg = f"{file} exists already; choose another name for the backup"
            raise BackupError(msg) from None
        except OSError:  # a file system without links
            partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    return summary


def _snapshot(source: Path, copy: Path) -> Path | None:
    """Copy a SQLite database as it is between two of its transactions; None where there is none."""
    if not source.is_file():
        return None
    end = time.monotonic() + SNAPSHOT_DEADLINE_S

    def in_time(_status: int, _left: int, _total: int) -> None:
        if time.monotonic() > end:
            msg = "the registry is written to without a pause; back it up again when nothing is being registered"
            raise BackupError(msg)

    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as reader,
            contextlib.closing(sqlite3.connect(copy)) as writer,
        ):
            reader.backup(writer, pages=_PAGES, progress=in_time, sleep=0.05)
    except sqlite3.Error as error:
        msg = f"the registry of the home folder cannot be read ({error}); mend or restore it first"
        raise BackupError(msg) from error
    return copy


def _write(home: Path, database: Path | None, out: IO[bytes], progress: Callable[[str, float], None]) -> Summary:
    found = list(_files(home))
    if database is not None:
        found.insert(0, (DATABASE, database))
    if not found:
        msg = f"the home folder {home} holds nothing to back up; name another with --home"
        raise BackupError(msg)
    total = sum(path.stat().st_size for _, path in found)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    home_format = read_format(home) or UNNUMBERED
    head = {
        "format": BACKUP_FORMAT,
        "home_format": home_format,
        "release": metadata.version("steelyard"),
        "created": created,
        "artifacts": (home / ARTIFACTS).absolute().as_uri(),
    }
    sums: dict[str, dict[str, object]] = {}
    done = 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_document(tar, HEAD, head)
        for name, path in found:
            progress(name.partition("/")[0], done / max(1, total))
            sums[name] = _add_file(tar, name, path)
            done += path.stat().st_size
        _add_document(tar, MANIFEST, {"files": sums})
    return Summary(
        len(sums), sum(int(str(entry["size"])) for entry in sums.values()), created, home_format, bool(database)
    )


def _files(home: Path) -> Iterator[tuple[str, Path]]:
    """Yield name in the backup and path of every file to take; raises BackupError for what is no plain file."""
    if (home / FORMAT_FILE).is_file():
        yield FORMAT_FILE, home / FORMAT_FILE
    digests = sorted({digest for record in CommittedStore(home).records() for digest in digests_of(record)})
    for folder in (
        "committed",
        "audit",
        ARTIFACTS,
        *(f"cache/{kind}/{digest}" for digest in digests for kind in CACHED),
    ):
        for path in sorted((home / folder).rglob("*")):
            if path.name.startswith(PARTIAL) or (path.is_dir() and not path.is_symlink()):
                continue
            if path.is_symlink() or not path.is_file():
                msg = f"{path} is a link or no plain file, which a home never holds; remove it and try again"
                raise BackupError(msg)
            yield path.relative_to(home).as_posix(), path


def _add_document(tar: tarfile.TarFile, name: str, document: object) -> None:
    data = json.dumps(document, sort_keys=True).encode()
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    tar.addfile(info, io.BytesIO(data))


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            info = tarfile.TarInfo(name)
            # The audit grows meanwhile: as much as there is now, and no more.
            info.size, info.mode, info.mtime = status.st_size, 0o600, int(status.st_mtime)
            reader = _Summing(file)
            tar.addfile(info, reader)
    except FileNotFoundError:
        raise _changed(name) from None
    except OSError as error:
        if error.errno is None:  # tarfile's own: the file was shorter than announced
            raise _changed(name) from None
        raise
    return {"sha256": reader.sum.hexdigest(), "size": info.size}


def _changed(name: str) -> BackupError:
    return BackupError(f"{name} changed while it was being backed up; try again")


class _Summing(io.RawIOBase):
    """Hashes what is read through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data
