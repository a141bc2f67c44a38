"""The home folder of a service: one service at a time, its record for other commands, its logs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from models.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE_FILE: Final = "service.json"
LOCK_FILE: Final = "service.lock"
FOLDER_FILE: Final = "service.folder"
KEPT_LOGS: Final = 5
"""Starts whose logs are kept."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """What the home folder says of the service that runs out of it.

    url: where it answers. pid: of the process to signal.
    """

    url: str
    pid: int


@contextlib.contextmanager
def only_service(home: Path) -> Iterator[None]:
    """Make ``home`` if need be and keep every other service out of it. Raises SettingsError with one clear line."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(home / LOCK_FILE, timeout=0, mode=0o600)
        lock.acquire()
    except Timeout:
        record = read_record(home)
        who = f" on {record.url} (process {record.pid})" if record else ""
        msg = f"a service runs out of {home} already{who}: stop it first, or set STEELYARD_HOME to another folder"
        raise SettingsError(msg) from None
    except OSError as error:
        msg = f"cannot use the home folder {home} ({error.strerror}): set STEELYARD_HOME to a folder you may write"
        raise SettingsError(msg) from None
    try:
        yield
    finally:
        lock.release()


def read_record(home: Path) -> ServiceRecord | None:
    """Return the record of the service in ``home``, or None where there is none that makes sense."""
    try:
        record = json.loads((home / SERVICE_FILE).read_text(encoding="utf-8"))
        return ServiceRecord(url=str(record["url"]), pid=int(record["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(home: Path, record: ServiceRecord) -> None:
    """Write the record in one step, readable by this user only."""
    handle, name = tempfile.mkstemp(dir=home, prefix=SERVICE_FILE)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
    Path(name).replace(home / SERVICE_FILE)


def remove_record(home: Path) -> None:
    """Remove the record if it is there."""
    (home / SERVICE_FILE).unlink(missing_ok=True)


def remember_folder(home: Path, folder: Path) -> None:
    """Note where this start's sockets and Ray's files lie, for a later start to clear up after a sudden death."""
    (home / FOLDER_FILE).write_text(str(folder), encoding="utf-8")


def remembered_folder(home: Path) -> Path | None:
    """Return the folder that an earlier start noted, or None."""
    try:
        folder = Path((home / FOLDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if folder.is_absolute() else None


def new_log_folder(home: Path, now: datetime | None = None) -> Path:
    """Return a new folder for this start's logs and drop those of all but the last KEPT_LOGS starts."""
    logs = home / "logs"
    folder = logs / f"{now or datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    folder.mkdir(mode=0o700, parents=True)
    for old in sorted(path for path in logs.iterdir() if path.is_dir())[:-KEPT_LOGS]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
