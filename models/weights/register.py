"""The commands on a registry: ``register`` makes a version, ``sign`` vouches for one, ``promote`` wants one served."""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ConversionError, ReleaseRejectedError, UnknownModelError
from models.rollout.order import PLAIN
from models.weights import sandbox
from models.weights.convert import convert, hash_source, source_format
from models.weights.golden import CONFIDENT
from models.weights.manifest import is_model_name
from models.weights.pictures import collect
from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, READY, SOURCE_TAG
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from models.rollout.order import Order
    from models.weights.registry import Desired, Registry, VersionInfo
    from models.weights.signing import SigningKey

PROMOTABLE = "true"
DOWNLOAD_DEADLINE_S = 600.0
_OFFICIAL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}\.pt\Z")


@dataclass(frozen=True, slots=True)
class Registration:
    """The version that a weights file has now; ``created`` is False where it had one already."""

    info: VersionInfo
    created: bool


def register(
    registry: Registry,
    source: str | Path,
    *,
    model: str,
    golden: Path | None = None,
    data: Path | None = None,
    metrics: Mapping[str, float] | None = None,
    progress: Callable[[str, float], None] | None = None,
    key: SigningKey | None = None,
) -> Registration:
    """Convert a weights file and store it as a new version of ``model``; blocks for seconds to minutes.

    The same bytes again make no new version, unless the earlier one could not be promoted and pictures are given now.

    Args:
        registry: where to store it.
        source: path of a ``.pt`` or ``.onnx`` file, or an official Ultralytics name such as ``yolo26n.pt``.
        model: its name: letters, digits, dots, dashes and underscores.
        golden: folder of pictures to take golden images from.
        data: Ultralytics ``data.yaml`` whose validation images serve instead.
        metrics: measured by whoever trained it, e.g. ``{"mAP50-95": 0.41}``.
        progress: called with the stage's name and the fraction done, 0 to 1.
        key: signs the new version; None leaves it unsigned.

    Raises:
        ConversionError: one sentence that says why the file cannot become a release.
        RegistryError: the registry cannot be reached.

    """
    if not is_model_name(model):
        msg = f"The name {model[:64]!r} cannot name a model; use up to 64 letters, digits, dots, dashes, underscores."
        raise ConversionError(msg)
    source_format(Path(source))
    with _local_file(source, progress) as path:
        digest = hash_source(path)
        known = _registered(registry, model, digest)
        if known is not None and (known.promotable == PROMOTABLE or (golden is None and data is None)):
            return Registration(known, created=False)
        pictures = collect(golden, data)
        with tempfile.TemporaryDirectory(prefix="steelyard-release-") as folder:
            manifest = convert(
                path, Path(folder), model=model, pictures=pictures, metrics=metrics, progress=_scaled(progress)
            )
            if progress is not None:
                progress("store", 0.95)
            tags = {
                DIGEST_TAG: manifest.digest,
                SOURCE_TAG: manifest.source.sha256,
                PROMOTABLE_TAG: PROMOTABLE if manifest.golden else _blind(len(pictures)),
            }
            vouch = None if key is None else functools.partial(_signature, key, model, manifest.digest)
            info = registry.create_version(model, Path(folder), tags=tags, metrics=manifest.metrics, sign=vouch)
    if progress is not None:
        progress("store", 1.0)
    return Registration(info, created=True)


def promote(registry: Registry, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN) -> Desired:
    """Make ``version`` the desired one, under a fresh promotion id that lifts any earlier rejection.

    Args:
        registry: where the version is.
        model: its name.
        version: as the registry counts it.
        reason: why, for whoever reads the registry later.
        order: which gates are waived and which trials come first.

    Raises:
        ReleaseRejectedError: step ``promote``; the version is not ready or cannot prove that it sees.
        UnknownModelError, UnknownVersionError, RegistryError: from the registry.

    """
    info = registry.version(model, version)
    if info.state != READY:
        msg = f"Version {version} of {model} is not ready: its registration did not finish. Register the weights again."
        raise ReleaseRejectedError(msg, step="promote")
    if info.promotable != PROMOTABLE:
        why = info.promotable or "it lacks the tag that says so"
        msg = f"Version {version} of {model} may not be promoted: {why}"
        raise ReleaseRejectedError(msg, step="promote")
    return registry.promote(model, version, promotion=uuid.uuid4().hex, reason=reason, order=order)


def sign(registry: Registry, model: str, version: str, key: SigningKey) -> VersionInfo:
    """Sign a version that was registered before, once its files are fetched and verified; returns it as it is now.

    What is signed is what the registry holds now: whoever asks for it vouches for that.

    Raises:
        ReleaseRejectedError: step ``sign`` where the version is not ready, ``verify`` or ``contract`` where its files
            are not those that its manifest lists.
        UnknownModelError, UnknownVersionError, RegistryError: from the registry.

    """
    info = registry.version(model, version)
    if info.state != READY:
        msg = f"Version {version} of {model} is not ready: its registration did not finish. Register the weights again."
        raise ReleaseRejectedError(msg, step="sign")
    with tempfile.TemporaryDirectory(prefix="steelyard-sign-") as folder:
        registry.fetch(model, version, Path(folder))
        digest = open_release(model, version, read_folder(Path(folder)), expect_digest=info.digest).digest
    registry.sign_version(model, version, key.sign(model, version, digest))
    return registry.version(model, version)


def _signature(key: SigningKey, model: str, digest: str, version: str) -> str:
    return key.sign(model, version, digest)


def _registered(registry: Registry, model: str, source_sha256: str) -> VersionInfo | None:
    """Return the newest ready version made of the same bytes, a promotable one before others."""
    try:
        versions = registry.versions(model)
    except UnknownModelError:
        return None
    same = [info for info in versions if info.source_sha256 == source_sha256 and info.state == READY]
    return max(enumerate(same), key=lambda pair: (pair[1].promotable == PROMOTABLE, pair[0]))[1] if same else None


@contextmanager
def _local_file(source: str | Path, progress: Callable[[str, float], None] | None) -> Iterator[Path]:
    """Yield the path of the weights file, fetching an official name that is no file here."""
    path = Path(source).expanduser()
    name = os.fspath(source)
    if path.exists() or not _OFFICIAL_NAME.match(name):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="steelyard-download-") as folder:
        result = sandbox.run_sandboxed(
            "models.weights.download",
            {"name": name},
            Path(folder),
            progress=progress,
            deadline_s=DOWNLOAD_DEADLINE_S,
            online=True,
        )
        found = Path(folder) / Path(str(result["file"])).name
        # Out of reach of whatever the child may have left behind in its own folder.
        with tempfile.TemporaryDirectory(prefix="steelyard-weights-") as kept:
            yield Path(shutil.copyfile(found, Path(kept) / name, follow_symlinks=False))


def _scaled(progress: Callable[[str, float], None] | None) -> Callable[[str, float], None] | None:
    """Leave the last twentieth of the bar to the registry."""
    return None if progress is None else lambda stage, done: progress(stage, done * 0.95)


def _blind(pictures: int) -> str:
    return (
        f"in {pictures} pictures it finds no box with a score of {CONFIDENT} or more, so nothing proves that it sees; "
        f"register it again with --golden and a folder of pictures that show its classes."
    )
