"""Opening a release: every byte is checked on every call, because loaders notice no flipped bit."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.types import Detections, GoldenImage, Release
from models.weights.manifest import GOLDEN_DIR, MANIFEST, MODEL_YAML, ONNX, SAFETENSORS, GoldenEntry, Manifest
from models.weights.onnx_wire import draws_on_other_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "GOLDEN_DIR",
    "MANIFEST",
    "MODEL_YAML",
    "ONNX",
    "SAFETENSORS",
    "Manifest",
    "SignatureCheck",
    "file_sha256",
    "finding",
    "open_release",
    "read_folder",
]

MAX_RELEASE_BYTES = 2 * 1024**3
MAX_FILES = 64
_ADVICE = "; register the weights again and promote the new version."

SignatureCheck = Callable[[str, str, str], None]
"""Called with (model, version, digest) once the digest is known to be true; ``trust.SignatureRule.check`` makes one. It
raises ReleaseRejectedError with step ``verify`` where the version's signature does not let it serve."""


def open_release(
    model: str,
    version: str,
    files: Mapping[str, NDArray[np.uint8]],
    *,
    expect_digest: str | None,
    verify_signature: SignatureCheck | None = None,
) -> Release:
    """Verify a release's files completely and return it.

    Args:
        model: the name under which the registry knows it; the manifest must agree.
        version: as the registry counts it.
        files: relative name -> uint8 (size,), ``manifest.json`` included.
        expect_digest: 64 hex digits from the registry's tag or the ledger; ``None`` accepts any sound release.
        verify_signature: see ``SignatureCheck``; None where nothing is loaded: for files just made, or only read.

    Raises:
        ReleaseRejectedError: step ``verify`` where bytes differ from what was registered, ``contract`` where they are
            as registered and yet no sound detector.

    """
    if MANIFEST not in files:
        _refuse("The manifest is missing")
    data = files[MANIFEST].tobytes()
    digest = hashlib.sha256(data).hexdigest()
    if expect_digest is not None and digest != expect_digest:
        _refuse(f"The manifest's digest is {digest[:12]}, the registry names {expect_digest[:12] or 'none'}")
    manifest = Manifest.from_bytes(data)
    if manifest.model != model:
        _refuse(f"The release was made for the model {manifest.model}, not {model}")
    _verify_files(manifest, files)
    if draws_on_other_files(np.ascontiguousarray(files[ONNX]).data):
        _refuse("The network draws weights from other files than the release's")
    if verify_signature is not None:
        verify_signature(model, version, digest)
    return Release(
        model=model,
        version=version,
        digest=digest,
        contract=manifest.contract,
        thresholds=manifest.thresholds,
        files=dict(files),
        golden=tuple(
            GoldenImage(entry.file.removeprefix(GOLDEN_DIR), files[entry.file].tobytes(), _expected(entry))
            for entry in manifest.golden
        ),
        metrics=dict(manifest.metrics),
    )


def read_folder(folder: Path, *, max_bytes: int = MAX_RELEASE_BYTES) -> dict[str, NDArray[np.uint8]]:
    """Read all regular files below ``folder`` into memory: relative POSIX name -> uint8 (size,).

    Raises:
        ReleaseRejectedError: step ``verify``; a link or special file, too many files, or over ``max_bytes`` in all.
        ReleaseFaultError: step ``fetch``; the folder cannot be read.

    """
    files: dict[str, NDArray[np.uint8]] = {}
    total = 0
    try:
        for path in sorted(folder.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                _refuse(f"The file {path.name[:80]} is a link or a device")
            total += path.lstat().st_size
            if len(files) >= MAX_FILES or total > max_bytes:
                _refuse(f"The release holds more than {MAX_FILES} files or {max_bytes // 1024**2} MiB")
            files[path.relative_to(folder).as_posix()] = _read(path, max_bytes)
    except OSError as error:
        msg = f"The release's files cannot be read ({error.strerror}); it will be tried again."
        raise ReleaseFaultError(msg, step="fetch") from error
    return files


def finding(error: ReleaseRejectedError) -> str:
    """Return what ``open_release`` or ``read_folder`` found, without their advice: of a copy, only the copy is bad."""
    return str(error).removesuffix(_ADVICE)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, max_bytes: int) -> NDArray[np.uint8]:
    # O_NOFOLLOW closes the gap between lstat and open in which a link could take the file's place.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return np.frombuffer(file.read(max_bytes + 1), np.uint8)


def _verify_files(manifest: Manifest, files: Mapping[str, NDArray[np.uint8]]) -> None:
    listed = set(manifest.files) | {MANIFEST}
    for name in sorted(listed - set(files)):
        _refuse(f"The file {name} is missing")
    for name in sorted(set(files) - listed):
        _refuse(f"The file {name[:80]} is not part of the release")
    for name, entry in manifest.files.items():
        array = files[name]
        if array.dtype != np.uint8 or array.ndim != 1 or array.size != entry.size:
            _refuse(f"The file {name} has {array.size} bytes instead of {entry.size}")
        found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        if found != entry.sha256:
            _refuse(
                f"The file {name} is not the one that was registered: its digest differs, {found[:12]} instead of "
                f"{entry.sha256[:12]}"
            )


def _expected(entry: GoldenEntry) -> Detections:
    return Detections(
        boxes=np.array(entry.boxes, np.float32).reshape(-1, 4),
        scores=np.array(entry.scores, np.float32),
        classes=np.array(entry.classes, np.int32),
    )


def _refuse(what: str) -> NoReturn:
    msg = f"{what}{_ADVICE}"
    raise ReleaseRejectedError(msg, step="verify")
