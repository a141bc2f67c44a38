"""Networks that OpenVINO has compiled, on disk, for all replicas of a machine: what one compiled the others only read.

A file holds a mark, the digest of its key and the rest, and what the runtime exported. One that is damaged is removed
and counts as missing. Whoever wants networks that are missing takes the folder's lock, and has a process of its own
compile them.
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
    import threading
    from collections.abc import Callable, Collection, Sequence

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 2 * 1024**3
"""Beyond it the files go that were not read for longest. A network of YOLO26n takes 9 MiB, for each size of image."""
LEAST_FREE: Final = 512 * 1024**2
"""Bytes that the disk must have left: what has to be written must not fail for the sake of what only saves time."""
LEAST_S: Final = 3.0
"""With less time left no process is started, which would only be killed."""
LOCK_POLL_S: Final = 0.02
SUFFIX: Final = ".openvino"
PART: Final = ".part"
_MARK: Final = b"steelyrd"
_HEAD: Final = len(_MARK) + hashlib.sha256().digest_size


class CompiledNetworks:
    """A folder of compiled networks, by key. Nothing raises OSError: a disk that fails only costs time."""

    def __init__(self, folder: Path, *, most_bytes: int = MOST_BYTES, least_free: int = LEAST_FREE) -> None:
        """Touch nothing yet.

        folder: on a disk of this machine, made where it is not. ``distrusted`` holds digests of networks of which this
        process reads nothing any more; whoever finds one wrong adds it.
        """
        self.folder = folder
        self.distrusted: set[str] = set()
        self._most_bytes = most_bytes
        self._least_free = least_free

    def has(self, key: str) -> bool:
        """Return whether a network lies there, damaged or not."""
        return os.path.exists(self._path(key))  # noqa: PTH110 - Path.exists raises where the folder is not ours

    def read(self, key: str) -> bytes | None:
        """Return what ``write`` was given, None where it is not, or not whole."""
        path = self._path(key)
        try:
            # A buffered file would put what it reads together in another copy, for milliseconds of Python's lock.
            with path.open("rb", buffering=0) as file:
                head = file.read(_HEAD)
                blob = file.readall()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("a compiled network cannot be read, and is compiled again: %s", error)
            return None
        if head != _head(key, blob):
            logger.warning("a compiled network is damaged, and is compiled again: %s", path)
            self.discard(key)
            return None
        with contextlib.suppress(OSError):  # the folder may be somebody else's, or another process prunes
            os.utime(path)
        return blob

    def write(self, key: str, blob: bytes) -> bool:
        """Keep ``blob`` under ``key``; return whether it is."""
        path = self._path(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._has_room(len(blob)):
                logger.warning("the disk is nearly full: compiled networks are not kept in %s", self.folder)
                return False
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=PART, delete=False) as file:
                try:
                    file.write(_head(key, blob))
                    file.write(blob)
                    file.flush()
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            logger.warning("a compiled network is not kept: %s", error)
            return False
        return True

    def discard(self, key: str) -> None:
        """Remove what lies under ``key``, if anything."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def prune(self, kept: Collection[str], *, most_bytes: int | None = None) -> None:
        """Keep to the folder's space, or to ``most_bytes``; ``kept`` are the keys of those that are wanted now."""
        stay = {self._path(key) for key in kept}
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # others discard, too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        most_bytes = self._most_bytes if most_bytes is None else most_bytes
        excess = sum(size for _, size, _ in found) - most_bytes
        for _, size, path in sorted(found):
            if excess > 0 and path not in stay:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    excess -= size

    def complete(
        self,
        keys: Sequence[str],
        make: Callable[[Sequence[int], float], None],
        abandoned: threading.Event,
        *,
        deadline_s: float,
    ) -> None:
        """Have ``make`` write those of ``keys`` that are missing, unless another process does meanwhile.

        Args:
            keys: of the networks wanted.
            make: called with the places in ``keys`` of those that are missing, and the seconds left to make them.
            abandoned: set when nobody wants them any more.
            deadline_s: longest that this waits for others, or ``make`` may take; then they stay missing.

        """
        end = time.monotonic() + deadline_s
        if all(map(self.has, keys)):
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / "lock", timeout=deadline_s, poll_interval=LOCK_POLL_S)
            with lock.acquire(cancel_check=abandoned.is_set):
                self._sweep()
                self.prune(keys)
                if not self._has_room(0):
                    self.prune(keys, most_bytes=0)
                    if not self._has_room(0):
                        logger.warning("the disk is nearly full: every replica compiles its networks itself")
                        return
                missing = [place for place, key in enumerate(keys) if not self.has(key)]
                left = end - time.monotonic()
                if missing and left > LEAST_S:
                    make(missing, left)
        except filelock.Timeout:
            if not abandoned.is_set():
                logger.warning("another process compiles for longer than %.0f s; this one compiles, too", deadline_s)
        except (OSError, RuntimeError) as error:  # the latter from locks that the file system does not have
            logger.warning("networks are compiled by every replica: %s", error)

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they wrote: whoever writes has the lock, or its child."""
        for path in self.folder.glob(f"*{PART}"):
            path.unlink(missing_ok=True)

    def _has_room(self, size: int) -> bool:
        return shutil.disk_usage(self.folder).free >= self._least_free + size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"


def _head(key: str, blob: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(blob)
    return _MARK + digest.digest()
