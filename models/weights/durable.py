"""Writing files so that a crash or a power cut leaves each of them whole, old or new. Callers handle OSError."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

PARTIAL = ".partial-"
"""Start of the name of a file or folder that is still being written."""


def write_new(path: Path, data: bytes | memoryview, mode: int = 0o600) -> None:
    """Write ``data`` to ``path`` and through to the disk; never through a link in its place."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` in the place of ``path`` in one step; its folder exists. mode: the file's rights from the start."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
