"""What survives a restart on this machine: releases by digest, and what the fleet last committed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from models.errors import RegistryError, ReleaseFaultError, ReleaseRejectedError
from models.weights.durable import PARTIAL, sync_folder, write_new
from models.weights.known_signatures import KnownSignatures
from models.weights.manifest import is_model_name
from models.weights.release import finding, open_release, read_folder
from models.weights.retention import Item

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from models.types import Release

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
STALE_S: Final = 3600.0
"""Age after which a partial release is of a process that died while it wrote (seconds)."""


class ReleaseCache:
    """Releases on disk, each in a folder named by its digest; what ``get`` returns is unverified.

    Several processes may share one root: a release appears by one atomic rename, whole or not at all.
    signatures: of the versions whose releases are here.
    """

    def __init__(self, root: Path) -> None:
        """Keep the root folder; nothing is created before the first ``put``."""
        self._root = root / "releases"
        self.signatures = KnownSignatures(root)

    def put(self, digest: str, files: Mapping[str, NDArray[np.uint8]]) -> None:
        """Store the files of one release, readable by this user only; does nothing where the digest is already there.

        Raises ReleaseFaultError with step ``fetch`` where the disk is full or refuses; no partial release remains.
        """
        target = self._folder(digest)
        if target.is_dir():
            return
        with _as_fault("stored in the cache"):
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=self._root))
            try:
                for name, array in files.items():
                    write_new(_inside(partial, name), np.ascontiguousarray(array).data)
                for folder in {partial / Path(name).parent for name in files} | {partial}:
                    sync_folder(folder)
                try:
                    partial.rename(target)
                except OSError:
                    # Another process was first: its release has the same digest, so it is as good as ours.
                    if not target.is_dir():
                        raise
                sync_folder(self._root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def get(self, digest: str) -> dict[str, NDArray[np.uint8]] | None:
        """Return the raw files of a release, or None where the cache lacks it. Raises as ``read_folder`` does."""
        folder = self._folder(digest)
        return read_folder(folder) if folder.is_dir() else None

    def has(self, digest: str) -> bool:
        """Return whether the release is here, sound or not."""
        return self._folder(digest).is_dir()

    def open(self, model: str, version: str, digest: str) -> Release | None:
        """Return a stored release with every byte verified, or None where the cache lacks it.

        Its signature is the caller's affair: that of the version, which one release may have several of.

        Raises ReleaseFaultError with step ``verify`` where the stored copy is damaged or cannot be read: it stays, so
        that every later start can name the damage, until ``replace``. Raises ReleaseRejectedError with step
        ``contract`` where it is as registered and yet no sound detector.
        """
        try:
            files = self.get(digest)
            return None if files is None else open_release(model, version, files, expect_digest=digest)
        except ReleaseFaultError as error:
            found, cause = "its files cannot be read", error.__cause__
            if isinstance(cause, OSError) and cause.strerror:
                found = f"{found} ({cause.strerror})"
        except ReleaseRejectedError as error:
            if error.step != "verify":
                raise
            found = finding(error)
        if not self._folder(digest).is_dir():  # pruned while it was read
            return None
        msg = f"This machine's copy of version {version} of {model} (release {digest[:12]}) is damaged: {found}"
        raise ReleaseFaultError(msg, step="verify")

    def replace(self, digest: str, files: Mapping[str, NDArray[np.uint8]]) -> None:
        """Store verified files in place of whatever is there, which may be damaged; raises as ``put``."""
        self.drop(digest)
        self.put(digest, files)

    def drop(self, digest: str) -> None:
        """Forget a release; does nothing where it is absent."""
        folder = self._folder(digest)
        if not folder.exists():
            return
        grave = self._root / f"{PARTIAL}{os.getpid()}-{digest[:16]}"
        # Renamed first, so that no reader meets a half-deleted folder.
        with contextlib.suppress(OSError):
            folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    def stored(self) -> list[Item]:
        """Return the complete releases by digest, in the order in which they were stored."""
        found: list[Item] = []
        for path in self._root.iterdir() if self._root.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if _DIGEST.match(path.name):
                    found.append(Item(path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC)))
        return sorted(found, key=lambda item: (item.created, item.name))

    def prune(self, keep: Collection[str]) -> list[str]:
        """Drop every release whose digest is not in ``keep``; return the digests dropped.

        Partial releases go, too, once nobody can still be writing them.
        """
        if not self._root.is_dir():
            return []
        for partial in self._root.glob(f"{PARTIAL}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - partial.stat().st_mtime > STALE_S:
                    shutil.rmtree(partial, ignore_errors=True)
        dropped = [path.name for path in self._root.iterdir() if _DIGEST.match(path.name) and path.name not in keep]
        for digest in dropped:
            self.drop(digest)
        self.signatures.prune(keep)
        return dropped

    def _folder(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            msg = "A release digest must be 64 hex digits; read it from the registry again."
            raise ReleaseRejectedError(msg, step="verify")
        return self._root / digest


def past_mending(damage: ReleaseFaultError) -> RegistryError:
    """Return the error where the damage of which ``ReleaseCache.open`` told meets a registry that cannot mend it."""
    msg = (
        f"{damage}; the registry, from which it would be fetched anew, cannot be reached. Start the registry, correct "
        "its address, or restore this home from a backup."
    )
    return RegistryError(msg)


@dataclass(frozen=True, slots=True)
class Committed:
    """What the fleet committed last for one model: enough to start without the registry.

    pin: version that stands against the registry's alias after a rollback whose alias move failed, else None.
    rejections: versions that were refused for good, as JSON, else None; records of earlier releases lack it.
    """

    model: str
    generation: int
    version: str
    digest: str
    previous_version: str | None = None
    previous_digest: str | None = None
    pin: str | None = None
    promotion: str | None = None
    rejections: str | None = None


class CommittedStore:
    """One small JSON file a model, replaced atomically and guarded by its own digest."""

    def __init__(self, root: Path) -> None:
        """Keep the root folder; nothing is created before the first ``save``."""
        self._root = root / "committed"

    def load(self, model: str) -> Committed | None:
        """Return the last record, or None where there is none or its bytes are damaged (logged as a warning)."""
        try:
            return _parse_record(self._path(model).read_bytes(), model)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("the committed record of %s is unreadable and ignored: %s", model, error)
            return None

    def records(self) -> list[Committed]:
        """Return the last record of every model that ever served here, damaged ones left out. Raises OSError."""
        if not self._root.is_dir():
            return []
        names = [path.stem for path in sorted(self._root.glob("*.json")) if not path.name.startswith(PARTIAL)]
        found = [self.load(name) for name in names if is_model_name(name)]
        return [record for record in found if record is not None]

    def save(self, committed: Committed) -> None:
        """Replace the record durably. Raises ReleaseFaultError with step ``commit`` where the disk refuses."""
        record = asdict(committed)
        data = json.dumps({"record": record, "sha256": _record_digest(record)}, sort_keys=True).encode()
        path = self._path(committed.model)
        with _as_fault("recorded as committed", step="commit"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
            try:
                write_new(partial, data)
                partial.replace(path)
                sync_folder(path.parent)
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, model: str) -> Path:
        if not is_model_name(model):
            msg = "A model name is made of letters, digits, dots, dashes and underscores; rename the model."
            raise ReleaseRejectedError(msg, step="contract")
        return self._root / f"{model}.json"


def _parse_record(data: bytes, model: str) -> Committed:
    """Return the record in ``data``; raises ValueError, KeyError or TypeError where it is damaged."""
    raw = json.loads(data)
    record = raw["record"]
    if raw["sha256"] != _record_digest(record) or record["model"] != model:
        msg = "digest or model differs"
        raise ValueError(msg)
    return Committed(**record)


def _record_digest(record: object) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _inside(folder: Path, name: str) -> Path:
    """Return ``folder / name`` with its parents made; raises ReleaseRejectedError where it would lie elsewhere."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        msg = "The release names a file outside its own folder; register the weights again."
        raise ReleaseRejectedError(msg, step="verify")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


@contextlib.contextmanager
def _as_fault(what: str, step: str = "fetch") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"The release cannot be {what} ({error.strerror}); free disk space or mend the folder."
        raise ReleaseFaultError(msg, step=step) from error
