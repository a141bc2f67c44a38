"""The manifest: what a release consists of, in canonical bytes whose sha256 names the release."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from models.errors import InvalidOptionError, ReleaseRejectedError
from models.types import Contract, Head, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MANIFEST = "manifest.json"
ONNX = "model.onnx"
SAFETENSORS = "model.safetensors"
MODEL_YAML = "model.yaml"
GOLDEN_DIR = "golden/"

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_CLASSES = 10_000
MAX_IMGSZ = 4096
MAX_STRIDE = 128

_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_FILE_NAME = re.compile(r"(golden/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def is_model_name(name: str) -> bool:
    """Return whether ``name`` can name a model: 1 to 64 letters, digits, dots, dashes and underscores."""
    return bool(_MODEL_NAME.match(name))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a release: sha256 in 64 hex digits, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """The weights file that the release was made of."""

    sha256: str
    size: int
    format: Literal["pt", "onnx"]


@dataclass(frozen=True, slots=True)
class GoldenEntry:
    """What the reference sees in one golden image.

    shape: (height, width) of the upright image in pixels. boxes: x1 y1 x2 y2 in pixels of it; scores: 0 to 1,
    falling; classes: ids into the manifest's names. The three have one entry a box.
    """

    file: str
    shape: tuple[int, int]
    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release's table of contents. It has no version number: the registry assigns that afterwards.

    stride, imgsz: pixels. files: name -> digest and size, the manifest itself excepted. metrics: name -> number, e.g.
    ``mAP50-95``. parity: how the artifacts were compared with the reference, free of a schema.
    """

    model: str
    task: str
    names: tuple[str, ...]
    stride: int
    imgsz: int
    head: Head
    dynamic: bool
    thresholds: Thresholds
    files: Mapping[str, FileEntry]
    source: Source
    libraries: Mapping[str, str]
    golden: tuple[GoldenEntry, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check the contract; raises ReleaseRejectedError with step ``contract``."""
        _check_contract(self)
        _check_golden(self)

    @property
    def contract(self) -> Contract:
        """Return what clients rely on."""
        return Contract(
            task="detect",
            names=self.names,
            stride=self.stride,
            imgsz=self.imgsz,
            head=self.head,
            dynamic=self.dynamic,
        )

    def to_bytes(self) -> bytes:
        """Return the canonical JSON (RFC 8259): keys sorted, no spaces, UTF-8, no NaN."""
        return json.dumps(
            asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    @property
    def digest(self) -> str:
        """Return the sha256 of the canonical bytes in 64 hex digits: the name of the release's content."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest, refusing anything but canonical bytes of a known schema.

        Raises ReleaseRejectedError: step ``verify`` where the bytes are not canonical, ``contract`` where their
        content is no sound detector.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            _refuse(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes", step="verify")
        try:
            raw = json.loads(data.decode())
        except (ValueError, RecursionError):
            _refuse("The manifest is not valid JSON", step="verify")
        if not isinstance(raw, dict):
            _refuse("The manifest is not a JSON object", step="verify")
        if raw.get("schema_version") != SCHEMA_VERSION:
            found = str(raw.get("schema_version"))[:20]
            _refuse(f"The manifest has schema version {found}, this release of Steelyard reads {SCHEMA_VERSION}")
        try:
            manifest = _build(raw)
            canonical = manifest.to_bytes()
        except (KeyError, TypeError, ValueError, AttributeError, InvalidOptionError) as error:
            _refuse(f"The manifest has a missing or malformed field ({type(error).__name__}: {str(error)[:80]})")
        if canonical != data:
            _refuse("The manifest's bytes are not in canonical form", step="verify")
        return manifest


def _refuse(what: str, *, step: str = "contract") -> NoReturn:
    msg = f"{what}; register the weights again."
    raise ReleaseRejectedError(msg, step=step)


def _build(raw: dict[str, Any]) -> Manifest:
    """Turn parsed JSON into a manifest; raises KeyError, TypeError or ValueError on a wrong form."""
    known = set(Manifest.__dataclass_fields__)
    if set(raw) != known:
        odd = min(set(raw) ^ known)
        msg = f"field {odd[:40]}"
        raise KeyError(msg)
    return Manifest(
        schema_version=raw["schema_version"],
        model=_text(raw["model"]),
        task=_text(raw["task"]),
        names=tuple(_text(name) for name in _list(raw["names"])),
        stride=_whole(raw["stride"]),
        imgsz=_whole(raw["imgsz"]),
        head=raw["head"],
        dynamic=_flag(raw["dynamic"]),
        thresholds=Thresholds(**raw["thresholds"]),
        files={_text(name): FileEntry(**entry) for name, entry in raw["files"].items()},
        source=Source(**raw["source"]),
        libraries={_text(name): _text(version) for name, version in raw["libraries"].items()},
        golden=tuple(_golden(entry) for entry in _list(raw["golden"])),
        metrics={_text(name): float(value) for name, value in raw["metrics"].items()},
        parity=dict(raw["parity"]),
    )


def _golden(raw: dict[str, Any]) -> GoldenEntry:
    height, width = (_whole(side) for side in raw["shape"])
    boxes = tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in raw["boxes"])
    return GoldenEntry(
        file=_text(raw["file"]),
        shape=(height, width),
        boxes=boxes,
        scores=tuple(float(score) for score in raw["scores"]),
        classes=tuple(_whole(cls) for cls in raw["classes"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        msg = f"expected text, found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"expected a whole number, found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"expected true or false, found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _list(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        msg = f"expected a list, found {type(value).__name__}"
        raise TypeError(msg)
    return value


def _check_contract(manifest: Manifest) -> None:
    m = manifest
    if not is_model_name(m.model):
        _refuse("The manifest's model name is not made of letters, digits, dots, dashes and underscores")
    if m.task != "detect":
        _refuse(f"The release's task is {m.task[:20]}, only detectors can serve")
    _check_names(m.names)
    if not 1 <= m.stride <= MAX_STRIDE or not m.stride <= m.imgsz <= MAX_IMGSZ or m.imgsz % m.stride:
        _refuse(f"The release's image size {m.imgsz} does not fit its stride {m.stride}")
    if m.head not in get_args(Head):
        _refuse("The release's head is neither end2end nor raw")
    if any(not math.isfinite(value) for value in m.metrics.values()):
        _refuse("The release carries a metric that is not a number")
    _check_files(m.files)
    if not _HEX64.match(m.source.sha256):
        _refuse("The release does not name its source by a proper digest")


def _check_files(files: Mapping[str, FileEntry]) -> None:
    if ONNX not in files:
        _refuse(f"The release lists no {ONNX}")
    for name, entry in files.items():
        if name == MANIFEST or not _FILE_NAME.match(name):
            _refuse("The release lists a file name that is not allowed")
        if not _HEX64.match(entry.sha256) or entry.size < 0:
            _refuse("The release lists a file without a proper digest and size")


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        _refuse("The release has no classes")
    if len(names) > MAX_CLASSES or any(not name.strip() for name in names):
        _refuse(f"The release has an empty class name or more than {MAX_CLASSES} classes")
    if len(set(names)) != len(names):
        _refuse("The release names one class twice")


def _check_golden(manifest: Manifest) -> None:
    for entry in manifest.golden:
        if not entry.file.startswith(GOLDEN_DIR) or entry.file not in manifest.files:
            _refuse("The release expects boxes in a golden image that it does not list")
        if not len(entry.boxes) == len(entry.scores) == len(entry.classes):
            _refuse("The release's golden boxes, scores and classes differ in number")
        if any(not 0.0 <= score <= 1.0 for score in entry.scores):
            _refuse("The release expects a score outside 0 to 1")
        if any(not 0 <= cls < len(manifest.names) for cls in entry.classes):
            _refuse("The release expects a class that it does not name")
        if any(not math.isfinite(side) for box in entry.boxes for side in box):
            _refuse("The release expects a box that is not finite")
