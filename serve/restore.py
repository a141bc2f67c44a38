"""Restores a home folder from a backup file that anyone may have made: every name, size and sum is checked.

Nothing is visible until all is right: files are written beside the home and renamed into its place at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

from serve.backup import ARTIFACTS, BACKUP_FORMAT, CACHED, DATABASE, HEAD, MANIFEST, BackupError, Summary
from serve.home import FORMAT, FORMAT_FILE, bring_up_to_date

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_DOCUMENT: Final = 64 * 1024 * 1024
"""Largest ``backup.json`` or ``manifest.json`` (bytes)."""
PLACES: Final = (ARTIFACTS, "committed", "audit", *(f"cache/{kind}" for kind in CACHED))
"""Folders in which a backup may put files."""
LOCATIONS: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's tables that hold absolute addresses of files."""
_CHUNK: Final = 1024 * 1024
_SUM: Final = re.compile(r"[0-9a-f]{64}")
_MOMENT: Final = re.compile(r"[0-9T:.+-]{1,40}")


def restore(file: Path, home: Path, *, progress: Callable[[str, float], None]) -> Summary:
    """Make ``home``, which must be missing or empty, what it was when ``file`` was written; blocks.

    progress: called with the step and the fraction done, 0 to 1.
    Raises BackupError or SettingsError in one sentence, OSError where the disk refuses; then ``home`` is as before.
    """
    if home.is_symlink() or (home.exists() and (not home.is_dir() or any(home.iterdir()))):
        msg = f"the home folder {home} is not empty; restore into a new one, named with --home"
        raise BackupError(msg)
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}-"))
    try:
        summary, artifacts = _unpack(file, staging, progress)
        if summary.registry:
            _relocate(staging / DATABASE, artifacts, (home / ARTIFACTS).absolute().as_uri())
        bring_up_to_date(staging)
        # Onto an empty folder this replaces it; onto one that was filled meanwhile it fails.
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return summary


def _unpack(file: Path, staging: Path, progress: Callable[[str, float], None]) -> tuple[Summary, str]:
    total = max(1, file.stat().st_size)
    written: dict[str, tuple[str, int]] = {}
    manifest: dict[str, Any] | None = None
    with _reading(file), file.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        members = iter(tar)
        head = _head(tar, next(members, None))
        for member in members:
            if manifest is not None:
                _damaged(f"holds {member.name[:80]!r} after its end")
            if member.name == MANIFEST:
                manifest = _document(tar, member)
                continue
            _check_member(member, written)
            progress(member.name.partition("/")[0], min(1.0, raw.tell() / total))
            written[member.name] = _extract(tar, member, staging / member.name)
    _compare(manifest, written)
    created = str(head.get("created", ""))
    summary = Summary(
        files=len(written),
        size=sum(size for _, size in written.values()),
        created=created if _MOMENT.fullmatch(created) else "",
        home_format=head["home_format"],
        registry=DATABASE in written,
    )
    return summary, str(head.get("artifacts", ""))


def _head(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Any]:
    if member is None or member.name != HEAD:
        msg = "this is no backup of a home folder; give a file that `steelyard backup` wrote"
        raise BackupError(msg)
    head = _document(tar, member)
    for key, known, what in (("format", BACKUP_FORMAT, "backup"), ("home_format", FORMAT, "home folder")):
        number = head.get(key)
        if type(number) is not int or number < 1:
            _damaged(f"names no format of its {what}")
        if number > known:
            msg = (
                f"the backup was written by a newer release of Steelyard (format {number} of the {what}, this one "
                f"knows {known}); install that release and try again"
            )
            raise BackupError(msg)
    return head


def _document(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > MAX_DOCUMENT:
        _damaged(f"has a {member.name} that is none")
    source = tar.extractfile(member)
    try:
        document = json.loads(source.read() if source else b"")
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        _damaged(f"has a {member.name} that is none")
    return document


def _check_member(member: tarfile.TarInfo, written: dict[str, tuple[str, int]]) -> None:
    name = member.name
    path = PurePosixPath(name)
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
    placed = name in (DATABASE, FORMAT_FILE) or any(name.startswith(f"{place}/") for place in PLACES)
    if not plain or not placed or str(path) != name or path.is_absolute() or ".." in path.parts or "\\" in name:
        _damaged(f"holds {name[:80]!r}, which is no file of a home")
    if name in written:
        _damaged(f"holds {name[:80]!r} twice")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> tuple[str, int]:
    """Write the member's bytes to ``target``, readable by this user only; return their SHA-256 and their number."""
    source = tar.extractfile(member)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "wb") as out:
        for chunk in _chunks(source):
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    # Retention goes by the age of what is cached.
    with contextlib.suppress(OverflowError, ValueError, OSError):  # an archive may claim any
        os.utime(target, (member.mtime, member.mtime))
    return digest.hexdigest(), size


def _chunks(source: IO[bytes] | None) -> Iterator[bytes]:
    while source is not None:
        chunk = source.read(_CHUNK)
        if not chunk:
            return
        yield chunk


def _compare(manifest: dict[str, Any] | None, written: dict[str, tuple[str, int]]) -> None:
    if manifest is None:
        _damaged("ends before its manifest")
    wanted = manifest.get("files")
    if not isinstance(wanted, dict) or wanted.keys() != written.keys():
        _damaged("does not hold the files that its manifest names")
    for name, entry in wanted.items():
        sound = isinstance(entry, dict) and _SUM.fullmatch(str(entry.get("sha256")))
        if not sound or (entry["sha256"], entry.get("size")) != written[name]:
            _damaged(f"holds {name[:80]!r} with other bytes than were written")


def _relocate(database: Path, before: str, after: str) -> None:
    """Let the registry's addresses of files below ``before`` point below ``after``."""
    try:
        with contextlib.closing(sqlite3.connect(database)) as opened, opened:
            opened.execute("PRAGMA trusted_schema = OFF")
            (verdict,) = opened.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                _damaged("holds a registry that SQLite finds damaged")
            for table, column in LOCATIONS:
                columns = {row[1] for row in opened.execute(f"PRAGMA table_info({table})")}
                if before and column in columns:
                    opened.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - our own names
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    )
    except sqlite3.Error:
        _damaged("holds a registry that SQLite cannot read")


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        msg = f"{file} cannot be read as a backup: it is damaged, cut short or something else; give another file"
        raise BackupError(msg) from error


def _damaged(what: str) -> NoReturn:
    msg = f"the backup {what}: it is damaged or was changed, and nothing was restored; use another one"
    raise BackupError(msg)
