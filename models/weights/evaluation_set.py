"""A labelled set of images to evaluate on: the ``val`` part of an Ultralytics ``data.yaml``, and the digest of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from models.errors import ConversionError, EvaluationError
from models.weights.pictures import read_data, validation_images
from models.weights.release import file_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_IMAGES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the set. name: of the image below the set's folder. label: None where nothing is labelled in it."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The images, sorted by name, at least one with a label file. name: folder and file of the yaml, for people.

    classes: names by id as the yaml gives them, {} where it gives none.
    """

    name: str
    samples: tuple[Sample, ...]
    classes: Mapping[int, str]

    def digest(self) -> str:
        """Return 64 hex digits of all names, images and labels; where the set's folder lies does not matter.

        Reads every file. Raises EvaluationError where one cannot be read.
        """
        whole = hashlib.sha256()
        for sample in self.samples:
            try:
                label = "-" if sample.label is None else file_sha256(sample.label)
                whole.update(f"{sample.name}\0{file_sha256(sample.image)}\0{label}\n".encode())
            except OSError as error:
                _refuse(f"The image {sample.name} of the data {self.name} cannot be read ({error.strerror})")
        return whole.hexdigest()

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Demand that the data's class ids mean what they mean to a version with the classes ``names``.

        The version may have more classes than the data. Raises EvaluationError.
        """
        for index, name in sorted(self.classes.items()):
            own = names[index] if 0 <= index < len(names) else None
            if own != name:
                told = "does not exist" if own is None else f"is {own!r}"
                _refuse(f"Class {index} is {name!r} in the data {self.name} and {told} in the version")


def open_set(data: Path) -> EvaluationSet:
    """Return the set that an Ultralytics ``data.yaml`` names under ``val``. Raises EvaluationError."""
    name = f"{data.absolute().parent.name}/{data.name}"
    try:
        classes = _classes(read_data(data).get("names"), name)
        # Links are kept: a set of links to images elsewhere has its labels beside the links.
        images = list(dict.fromkeys(Path(os.path.normpath(image.absolute())) for image in validation_images(data)))
    except ConversionError as error:
        raise EvaluationError(str(error)) from error
    except (OSError, UnicodeDecodeError):
        _refuse(f"The images that the data {name} lists under val cannot be read")
    if not 0 < len(images) <= MAX_IMAGES:
        _refuse(f"The data {name} lists {len(images)} images under val, 1 to {MAX_IMAGES} are wanted")
    for image in images:
        if not image.is_file():
            _refuse(f"The data {name} lists the image {image.name}, which does not exist")
    root = os.path.commonpath([image.parent for image in images])
    samples = [Sample(image.relative_to(root).as_posix(), image, _label_of(image)) for image in images]
    if all(sample.label is None for sample in samples):
        _refuse(f"No image of the data {name} has a label file; they belong in a folder labels beside images")
    return EvaluationSet(name, tuple(sorted(samples, key=lambda sample: sample.name)), classes)


def _label_of(image: Path) -> Path | None:
    """Return the label file where Ultralytics looks for it: the last folder ``images`` becomes ``labels``."""
    folder = f"{os.sep}images{os.sep}"
    before, found, after = str(image).rpartition(folder)
    label = Path(f"{before}{os.sep}labels{os.sep}{after}" if found else image).with_suffix(".txt")
    return label if label.is_file() else None


def _classes(names: object, data: str) -> dict[int, str]:
    """Return the yaml's names by id; Ultralytics allows a list too."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None:
        return {}
    if not isinstance(names, dict) or not all(isinstance(index, int) for index in names):
        _refuse(f"The data {data} gives its class names in another form than a list or numbers with names")
    return {index: str(name).strip() for index, name in names.items()}


def _refuse(what: str) -> NoReturn:
    msg = f"{what}; mend the data and evaluate again."
    raise EvaluationError(msg)
