"""The home folder of a service: its format, one service at a time, its record for other commands, its logs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from models.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FORMAT: Final = 1
"""Number of the layout of a home folder as this release writes it."""
UNNUMBERED: Final = 1
"""Format of the homes of the releases that wrote no number."""
FORMAT_FILE: Final = "home.json"
MIGRATIONS: Final[Mapping[int, Callable[[Path], None]]] = {}
"""Format -> what makes a home of it one of the next format. Each may be run again after a crash in its middle."""
CONTENT: Final = ("registry", "committed", "cache", "audit")
"""Folders of which a home that was ever used has one."""

SERVICE_FILE: Final = "service.json"
LOCK_FILE: Final = "service.lock"
FOLDER_FILE: Final = "service.folder"
KEPT_LOGS: Final = 5
"""Starts whose logs are kept."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """What the home folder says of the service that runs out of it.

    url: where it answers. pid: of the process to signal. key: the API key of whoever may read this home; it has every
    scope, and ends with the service.
    """

    url: str
    pid: int
    key: str | None = field(default=None, repr=False)


@contextlib.contextmanager
def only_service(home: Path) -> Iterator[None]:
    """Make ``home`` if need be and keep every other service out of it. Raises SettingsError with one clear line."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(home / LOCK_FILE, timeout=0, mode=0o600)
        lock.acquire()
        try:
            bring_up_to_date(home)
        except BaseException:
            lock.release()
            raise
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


def bring_up_to_date(
    home: Path, *, newest: int = FORMAT, migrations: Mapping[int, Callable[[Path], None]] = MIGRATIONS
) -> None:
    """Make the home at ``home``, an existing folder, one of format ``newest``, step by step, and note the number.

    Call it where no service runs out of the home. Raises SettingsError with one clear line where that cannot be done,
    OSError where the disk refuses.
    """
    noted = read_format(home)
    found = noted if noted is not None else UNNUMBERED if _used(home) else newest
    if found > newest:
        raise _newer(home, found, newest)
    while found < newest:
        if found not in migrations:
            msg = (
                f"the home folder {home} has format {found}, which this release cannot bring to format {newest}: start "
                "a release in between with it first, or set STEELYARD_HOME to another folder"
            )
            raise SettingsError(msg)
        migrations[found](home)
        found += 1
        _write_format(home, found)
    if noted is None:
        _write_format(home, newest)


def check_format(home: Path) -> None:
    """Refuse a home that this release cannot read. Raises SettingsError with one clear line; writes nothing."""
    found = read_format(home)
    if found is None:
        found = UNNUMBERED if _used(home) else FORMAT
    if found > FORMAT:
        raise _newer(home, found, FORMAT)
    if found < FORMAT:
        msg = f"the home folder {home} has the older format {found}: start the service once, which brings it up to date"
        raise SettingsError(msg)


def claim_home(home: Path) -> None:
    """Make ``home`` if need be and note its format, for a command that writes without a service.

    Raises SettingsError with one clear line.
    """
    check_format(home)
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if read_format(home) is None:
            _write_format(home, FORMAT)
    except OSError as error:
        msg = f"cannot use the home folder {home} ({error.strerror}): set STEELYARD_HOME to a folder you may write"
        raise SettingsError(msg) from None


def read_format(home: Path) -> int | None:
    """Return the format noted in ``home``, None where none is. Raises SettingsError where the note makes no sense."""
    path = home / FORMAT_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["format"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if type(found) is not int or found < 1:
        msg = f"{path} names no format: restore it from a backup, or set STEELYARD_HOME to another folder"
        raise SettingsError(msg)
    return found


def _write_format(home: Path, number: int) -> None:
    _write(home, FORMAT_FILE, {"format": number, "release": metadata.version("steelyard")})


def _used(home: Path) -> bool:
    return any((home / name).exists() for name in CONTENT)


def _newer(home: Path, found: int, newest: int) -> SettingsError:
    return SettingsError(
        f"the home folder {home} was written by a newer release of Steelyard (format {found}, this one knows "
        f"{newest}): install that release, or set STEELYARD_HOME to another folder"
    )


def read_record(home: Path) -> ServiceRecord | None:
    """Return the record of the service in ``home``, or None where there is none that makes sense."""
    try:
        record = json.loads((home / SERVICE_FILE).read_text(encoding="utf-8"))
        key = record.get("key")
        return ServiceRecord(str(record["url"]), int(record["pid"]), None if key is None else str(key))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(home: Path, record: ServiceRecord) -> None:
    """Write the record in one step, readable by this user only."""
    _write(home, SERVICE_FILE, asdict(record))


def remove_record(home: Path) -> None:
    """Remove the record if it is there."""
    (home / SERVICE_FILE).unlink(missing_ok=True)


def _write(home: Path, name: str, document: Mapping[str, object]) -> None:
    handle, partial = tempfile.mkstemp(dir=home, prefix=name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
    Path(partial).replace(home / name)


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
