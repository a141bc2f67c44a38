"""From a weights file to the folder of a release: the parent's half of a conversion.

The file is copied and hashed here and opened only in the sandboxed child (``conversion.py``). What the child hands back
is checked like any release: it worked on an untrusted file.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ConversionError, InvalidOptionError, ReleaseRejectedError
from models.types import Thresholds
from models.weights import sandbox
from models.weights.manifest import MANIFEST, FileEntry, GoldenEntry, Manifest, Source
from models.weights.release import file_sha256, open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models.weights.pictures import Picture

MAX_SOURCE_BYTES = 1024**3
FORMATS = {".pt": "pt", ".onnx": "onnx"}
_CHUNK = 1024 * 1024


def convert(
    source: Path,
    destination: Path,
    *,
    model: str,
    pictures: Sequence[Picture],
    metrics: Mapping[str, float] | None = None,
    progress: Callable[[str, float], None] | None = None,
    deadline_s: float = sandbox.DEADLINE_S,
) -> Manifest:
    """Convert ``source`` into the empty folder ``destination``; blocks for seconds up to ``deadline_s``.

    Args:
        source: a ``.pt`` checkpoint of Ultralytics or an ``.onnx`` export of it.
        destination: an existing, empty folder; afterwards the release's files, manifest included.
        model: the name that the release will have.
        pictures: candidates for golden images, at least one.
        metrics: measured by whoever trained it, e.g. ``{"mAP50-95": 0.41}``; kept in the manifest.
        progress: called with the stage's name and the fraction done, 0 to 1.
        deadline_s: after this many seconds the conversion is killed.

    Raises:
        ConversionError: one sentence that says why the file cannot become a release.

    """
    kind = source_format(source)
    with tempfile.TemporaryDirectory(prefix="steelyard-convert-") as name:
        scratch = Path(name)
        copied = scratch / f"source.{kind}"
        origin = _copy(source, copied, kind)
        candidates = []
        (scratch / "pictures").mkdir()
        for index, picture in enumerate(pictures):
            path = scratch / "pictures" / f"{index:02d}-{Path(picture.name).name}"
            path.write_bytes(picture.data)
            candidates.append(str(path))
        output = scratch / "output"
        output.mkdir()
        request = {"source": str(copied), "format": kind, "pictures": candidates, "output": str(output)}
        result = sandbox.run_sandboxed(
            "models.weights.conversion", request, scratch, progress=progress, deadline_s=deadline_s
        )
        return _assemble(output, destination, model=model, origin=origin, metrics=metrics or {}, result=result)


def source_format(source: Path) -> str:
    """Return ``pt`` or ``onnx`` by the file's suffix. Raises ConversionError for others."""
    try:
        return FORMATS[source.suffix.lower()]
    except KeyError:
        msg = f"The file {source.name} is neither a .pt checkpoint nor an .onnx export; give one of these."
        raise ConversionError(msg) from None


def hash_source(source: Path) -> str:
    """Return the sha256 of the weights file. Raises ConversionError where it is missing or unreadable."""
    try:
        return file_sha256(source)
    except FileNotFoundError:
        msg = f"The weights file {source} does not exist; check the path."
    except IsADirectoryError:
        msg = f"{source} is a folder; give the .pt or .onnx file itself."
    except OSError as error:
        msg = f"The weights file {source} cannot be read ({error.strerror}); check its permissions."
    raise ConversionError(msg)


def _copy(source: Path, target: Path, kind: str) -> Source:
    """Copy and hash in one pass, so that what was hashed is what is converted."""
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                size += len(chunk)
                if size > MAX_SOURCE_BYTES:
                    limit = MAX_SOURCE_BYTES // 1024**2
                    msg = f"The weights file {source.name} is larger than {limit} MiB; give another."
                    raise ConversionError(msg)
                digest.update(chunk)
                writer.write(chunk)
    except OSError as error:
        msg = f"The weights file {source.name} cannot be copied for conversion ({error.strerror})."
        raise ConversionError(msg) from error
    if size == 0:
        msg = f"The weights file {source.name} is empty; copy or export it again."
        raise ConversionError(msg)
    return Source(digest.hexdigest(), size, "pt" if kind == "pt" else "onnx")


def _assemble(
    output: Path,
    destination: Path,
    *,
    model: str,
    origin: Source,
    metrics: Mapping[str, float],
    result: dict[str, Any],
) -> Manifest:
    """Write the manifest over what the child left and prove that the whole opens as a release."""
    try:
        files = read_folder(output)
        manifest = Manifest(
            model=model,
            task="detect",
            names=tuple(str(name) for name in result["names"]),
            stride=int(result["stride"]),
            imgsz=int(result["imgsz"]),
            head=result["head"],
            dynamic=bool(result["dynamic"]),
            thresholds=Thresholds(),
            files={
                name: FileEntry(hashlib.sha256(array.data).hexdigest(), array.size) for name, array in files.items()
            },
            source=origin,
            libraries={str(name): str(version) for name, version in result["libraries"].items()},
            golden=tuple(_golden(entry) for entry in result["golden"]),
            metrics={name: float(value) for name, value in metrics.items()},
            parity=dict(result["parity"]),
        )
        (output / MANIFEST).write_bytes(manifest.to_bytes())
        open_release(model, "", read_folder(output), expect_digest=manifest.digest)
    except ReleaseRejectedError as error:
        raise ConversionError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOptionError) as error:
        msg = "The conversion handed back an incomplete release; the file is damaged. Export it again."
        raise ConversionError(msg) from error
    for path in sorted(output.rglob("*")):
        target = destination / path.relative_to(output)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
    return manifest


def _golden(entry: Mapping[str, Any]) -> GoldenEntry:
    height, width = (int(side) for side in entry["shape"])
    return GoldenEntry(
        file=str(entry["file"]),
        shape=(height, width),
        boxes=tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in entry["boxes"]),
        scores=tuple(float(score) for score in entry["scores"]),
        classes=tuple(int(cls) for cls in entry["classes"]),
    )
