"""Where golden images come from: a folder, a data set's validation images, or what ships with the packages."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from models.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MAX_CANDIDATES = 16
MAX_BYTES = 20 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Picture:
    """A candidate for a golden image: its file's name and encoded bytes."""

    name: str
    data: bytes


def collect(golden: Path | None = None, data: Path | None = None) -> list[Picture]:
    """Return up to 16 candidate pictures, from ``golden`` if given, else ``data``, else the installed packages.

    Args:
        golden: a folder of JPEG, PNG or WebP files.
        data: an Ultralytics ``data.yaml``; images are taken evenly from its ``val`` part.

    Raises:
        ConversionError: a given source holds no picture or cannot be read.

    """
    if golden is not None:
        if not golden.is_dir():
            msg = f"The golden folder {golden.name} does not exist or is no folder; give one that holds pictures."
            raise ConversionError(msg)
        found = _read(sorted(golden.iterdir()))
        asked = f"The golden folder {golden.name}"
    elif data is not None:
        found = _read(validation_images(data))
        asked = f"The validation part of {data.name}"
    else:
        found = _read(_shipped())
        asked = "The installation"
    if not found:
        msg = f"{asked} holds no readable JPEG, PNG or WebP picture; give one that does."
        raise ConversionError(msg)
    return found


def _read(paths: Iterable[Path]) -> list[Picture]:
    usable = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    step = max(len(usable) / MAX_CANDIDATES, 1.0)
    chosen = [usable[int(index * step)] for index in range(min(len(usable), MAX_CANDIDATES))]
    pictures = []
    for path in chosen:
        try:
            if path.stat().st_size <= MAX_BYTES:
                pictures.append(Picture(path.name, path.read_bytes()))
        except OSError:
            continue
    return pictures


def read_data(data: Path) -> dict[str, Any]:
    """Return the content of an Ultralytics ``data.yaml`` that has a ``val`` entry. Raises ConversionError."""
    try:
        spec: Any = yaml.safe_load(data.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"The data file {data.name} cannot be read; give an Ultralytics data.yaml."
        raise ConversionError(msg) from error
    if not isinstance(spec, dict) or not spec.get("val"):
        msg = f"The data file {data.name} names no validation images (val:); give an Ultralytics data.yaml."
        raise ConversionError(msg)
    return spec


def validation_images(data: Path) -> list[Path]:
    """Return the files of the ``val`` entry: a folder, a list file or several, below ``path`` or the yaml's folder.

    Raises ConversionError where ``data`` is no ``data.yaml``.
    """
    spec = read_data(data)
    root = data.parent / str(spec.get("path") or ".")
    if not root.is_dir():
        root = data.parent
    entries = spec["val"] if isinstance(spec["val"], list) else [spec["val"]]
    images: list[Path] = []
    for entry in entries:
        place = root / str(entry)
        if place.is_dir():
            images += sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
        elif place.is_file():
            images += [place.parent / line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line]
    return images


def _shipped() -> list[Path]:
    """Return pictures of street scenes from Ultralytics' assets and of checkout trays from the demo detector."""
    found: list[Path] = []
    # Looked up without importing: ultralytics takes seconds and patches other libraries.
    for package, folder in (("ultralytics", "assets"), ("models.demo", "golden")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += sorted((Path(place) / folder).glob("*.jpg"))
    return found
