"""Networks that OpenVINO has compiled, on disk, for all replicas of a machine: what one compiled the others only read.

A file holds a mark, the digest of the rest, and what the runtime exported. One that is damaged is removed and counts as
missing. Whoever wants networks that are missing takes the folder's lock, and has a process of its own compile them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import filelock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 2 * 1024**3
"""Beyond it the files go that were not read for longest. A network of YOLO26n takes 9 MiB, one of YOLO26x some 120."""
LEAST_FREE: Final = 512 * 1024**2
"""Bytes that the disk must have left: what has to be written must not fail for the sake of what only saves time."""
LOCK_POLL_S: Final = 0.02
SUFFIX: Final = ".openvino"
_MARK: Final = b"steelyrd"
_HEAD: Final = len(_MARK) + hashlib.sha256().digest_size


class CompiledNetworks:
    """A folder of compiled networks, by key. Nothing raises OSError: a disk that fails only costs time."""

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES, least_free: int = LEAST_FREE) -> None:
        """Touch nothing yet. folder: on a disk of this machine, made where it is not."""
        self.folder = folder
        self._most_bytes = most_bytes
        self._least_free = least_free

    def has(self, key: str) -> bool:
        """Return whether a network lies there, damaged or not."""
        return self._path(key).exists()

    def read(self, key: str) -> bytes | None:
        """Return what ``write`` was given, None where it is not, or not whole."""
        path = self._path(key)
        try:
            # A buffered file would put what it reads together in another copy, for milliseconds of Python's lock.
            with path.open("rb", buffering=0) as file:
                head = file.read(_HEAD)
                blob = file.readall()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("a compiled network cannot be read, and is compiled again: %s", error)
            return None
        if head != _MARK + hashlib.sha256(blob).digest():
            logger.warning("a compiled network is damaged, and is compiled again: %s", path)
            self.discard(key)
            return None
        return blob

    def write(self, key: str, blob: bytes) -> bool:
        """Keep ``blob`` under ``key``, in the place of those that were not read for longest; return whether it is."""
        path = self._path(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < self._least_free + len(blob):
                logger.warning("the disk is nearly full: a compiled network is not kept in %s", self.folder)
                return False
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                try:
                    file.write(_MARK + hashlib.sha256(blob).digest())
                    file.write(blob)
                    file.flush()
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            self._prune(path)
        except OSError as error:
            logger.warning("a compiled network is not kept: %s", error)
            return False
        return True

    def discard(self, key: str) -> None:
        """Remove what lies under ``key``, if anything."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def complete(self, keys: Sequence[str], make: Callable[[Sequence[int], float], None], *, deadline_s: float) -> None:
        """Have ``make`` write those of ``keys`` that are missing, unless another process does meanwhile.

        Args:
            keys: of the networks wanted.
            make: called with the places in ``keys`` of those that are missing, and the seconds left to make them.
            deadline_s: longest that this waits for others, or ``make`` may take; then they stay missing.

        """
        end = time.monotonic() + deadline_s
        if all(map(self.has, keys)):
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with filelock.FileLock(self.folder / "lock", timeout=deadline_s, poll_interval=LOCK_POLL_S):
                missing = [place for place, key in enumerate(keys) if not self.has(key)]
                left = end - time.monotonic()
                if missing and left > 0:
                    make(missing, left)
        except filelock.Timeout:
            logger.warning("another process compiles for longer than %.0f s; this one compiles, too", deadline_s)
        except OSError as error:
            logger.warning("networks are compiled by every replica: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _prune(self, newest: Path) -> None:
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # others prune, too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self._most_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                excess -= size
