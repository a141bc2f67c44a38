"""Label files as Ultralytics reads them (``verify_image_label`` in ``data/utils.py`` of 8.4.190).

A line is a box of class, centre x, centre y, width, height as shares of the image, or, where any line of the file has
more numbers, an outline of class and points whose enclosing box counts. Where Ultralytics would leave out the image of
a bad label file, this refuses: a score on fewer images is another score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from models.errors import EvaluationError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TOLERANCE: Final = 0.01
"""Share of the image by which a label may reach beyond it."""
_BOX: Final = 5
_MOST_OF_A_BOX: Final = 6


def read_labels(label: Path | None, class_count: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the labels of one image, each once.

    Args:
        label: its label file, None for an image in which nothing is labelled.
        class_count: number of classes of the version, >= 1.

    Returns:
        Classes int32 (n,), and boxes float64 (n, 4): centre x, centre y, width, height as shares of the image.

    Raises:
        EvaluationError: the file cannot be read, is malformed, or labels a class that the version does not have.

    """
    rows = [] if label is None else _rows(label)
    if label is None or not rows:
        return np.zeros(0, np.int32), np.zeros((0, 4))
    outlines = any(len(row) > _MOST_OF_A_BOX for row in rows)
    if any(len(row) % 2 == 0 or (len(row) == _BOX) == outlines or len(row) < _BOX for row in rows):
        _refuse(label, "has a line that is neither a box of 5 numbers nor, in a file of outlines, a class and points")
    classes = np.array([row[0] for row in rows])
    boxes = np.stack([_enclosing(row[1:]) if outlines else np.array(row[1:]) for row in rows])
    if not (np.isfinite(classes).all() and np.isfinite(boxes).all()):
        _refuse(label, "holds a number that is not finite")
    if boxes.max() > 1 + TOLERANCE or boxes.min() < -TOLERANCE or boxes[:, 2:].min() < 0:
        _refuse(label, "holds a box outside its image; numbers are shares of the image, 0 to 1")
    if (classes % 1 != 0).any() or classes.min() < 0:
        _refuse(label, "holds a class that is no whole number")
    if classes.max() >= class_count:
        _refuse(label, f"labels class {classes.max():.0f}, and the version has classes 0 to {class_count - 1}")
    return classes.astype(np.int32), boxes


def _rows(label: Path) -> list[tuple[float, ...]]:
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
        return list(dict.fromkeys(tuple(float(number) for number in line.split()) for line in lines if line.strip()))
    except OSError as error:
        _refuse(label, f"cannot be read ({error.strerror})")
    except ValueError:
        _refuse(label, "holds something else than numbers")


def _enclosing(points: tuple[float, ...]) -> NDArray[np.float64]:
    corners = np.array(points).reshape(-1, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return np.concatenate(((low + high) / 2, high - low))


def _refuse(label: Path, what: str) -> NoReturn:
    msg = f"The label file {label.name} {what}; mend the data and evaluate again."
    raise EvaluationError(msg)
