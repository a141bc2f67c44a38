"""A release of given weights for a measurement: converted once by the package's own code, then kept in a cache."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from models.weights.convert import convert  # noqa: E402 - found through the lines above when run as a script
from models.weights.manifest import MANIFEST, Manifest  # noqa: E402 - likewise
from models.weights.pictures import collect  # noqa: E402 - likewise
from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, SOURCE_TAG  # noqa: E402 - likewise
from models.weights.release import open_release, read_folder  # noqa: E402 - likewise

if TYPE_CHECKING:
    from models.types import Release

CACHE = ROOT / ".bench"
"""What a later run may use again: converted releases, exported networks, virtual environments of other servers."""

MODEL = "bench"


def shared() -> Path:
    """Return the folder of weights and photographs that measurements use: STEELYARD_SHARED, else ``../shared``."""
    return ROOT / os.environ.get("STEELYARD_SHARED", "../shared")


def default_weights() -> Path:
    """Return the weights that the benchmark is defined on."""
    return shared() / "weights" / "yolo26n-coco.pt"


def default_pictures() -> Path:
    """Return the photographs that the benchmark is defined on."""
    return shared() / "data" / "coco128" / "images"


def prepare(weights: Path, *, model: str = MODEL, copy: int = 1, cache: Path = CACHE) -> Path:
    """Return the folder of a release of ``model`` made of ``weights``; takes about half a minute the first time.

    The same weights under the same converting code are converted once. Each ``copy`` is a version of its own: the same
    network under another digest.

    Raises ConversionError in one sentence, OSError where a file cannot be read or written.
    """
    digest = hashlib.sha256(f"{model} {copy} ".encode() + weights.read_bytes())
    for source in sorted((ROOT / "models" / "weights").glob("*.py")):
        digest.update(source.read_bytes())
    folder = cache / "releases" / digest.hexdigest()[:16]
    if not (folder / MANIFEST).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            release = Path(fresh) / "release"
            release.mkdir()
            convert(weights, release, model=model, pictures=collect(), metrics={"copy": float(copy)})
            release.rename(folder)
    return folder


def read(folder: Path) -> Release:
    """Return the verified release in ``folder``, as version 1. Raises ReleaseRejectedError."""
    manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
    return open_release(manifest.model, "1", read_folder(folder), expect_digest=None)


def register(folder: Path, home: Path, *, promote: bool = True) -> str:
    """Make the release in ``folder`` a version of its model in the service home ``home``, by default what is served.

    Returns the version. Raises RegistryError.
    """
    from models.weights.mlflow_registry import MlflowRegistry  # noqa: PLC0415 - takes seconds to load
    from serve.settings import load_settings  # noqa: PLC0415 - only this needs it

    release = read(folder)
    registry = MlflowRegistry(load_settings(home=home).tracking_uri)
    tags = {DIGEST_TAG: release.digest, SOURCE_TAG: release.digest, PROMOTABLE_TAG: "true"}
    info = registry.create_version(release.model, folder, tags=tags, metrics={})
    if promote:
        registry.promote(release.model, info.version, promotion=uuid.uuid4().hex, reason="measurement")
    return info.version
