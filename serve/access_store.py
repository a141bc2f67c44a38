"""Changes of the access file by the command line: one at a time, whole or not at all, readable by this user only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from models.errors import InvalidOptionError
from serve.access import NAME
from serve.access_document import AccessFileError, read_keys, render

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from serve.access import AccessKey

LOCK_DEADLINE_S: Final = 10.0


def edit(path: Path, change: Callable[[tuple[AccessKey, ...]], Sequence[AccessKey]]) -> None:
    """Replace the keys of the access file at ``path`` by what ``change`` makes of them; the file is made if need be.

    Raises AccessFileError where it cannot be read or written, and what ``change`` raises; then nothing has changed.
    """
    # A link stays a link: what it names is replaced.
    path = path.resolve()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_DEADLINE_S, mode=0o600):
            _replace(path, render(change(tuple(read_keys(path) or ()))))
    except Timeout:
        msg = f"another command has been changing {path} for {LOCK_DEADLINE_S:.0f} s: try again when it has ended"
        raise AccessFileError(msg) from None
    except OSError as error:
        msg = f"cannot write {path} ({error.strerror}): change the file where it comes from, or set STEELYARD_HOME"
        raise AccessFileError(msg) from None


def added(keys: Sequence[AccessKey], key: AccessKey) -> list[AccessKey]:
    """Return ``keys`` and ``key``. Raises InvalidOptionError where its name is no name or is taken."""
    if not NAME.fullmatch(key.name):
        msg = f"{key.name!r} is not a name for a key; use 1 to 64 letters, digits, '.', '_' and '-'"
        raise InvalidOptionError(msg)
    if any(known.name == key.name for known in keys):
        msg = f"there is a key {key.name!r} already; rotate it, revoke it, or choose another name"
        raise InvalidOptionError(msg)
    return [*keys, key]


def found(keys: Sequence[AccessKey], name_or_id: str) -> AccessKey:
    """Return the key of that name, else that id. Raises InvalidOptionError where there is none."""
    for attribute in ("name", "key_id"):
        for key in keys:
            if getattr(key, attribute) == name_or_id:
                return key
    msg = f"there is no key {name_or_id!r}; `steelyard access list` shows them"
    raise InvalidOptionError(msg)


def _replace(path: Path, content: bytes) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
