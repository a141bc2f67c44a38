"""The sight test: a version must see, in the runtime and precision that will serve it, before it may serve.

Damaged weights answer HTTP 200 with zero boxes, and a blind model reproduces its own blindness; so a candidate is held
against what torch fp32 saw at registration, and against what the serving version was expected to see.
Not here: that mAP may lose at most 0.3 points, which needs a labelled set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from models.errors import BackendError, InvalidImageError, ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.types import Detections, GoldenImage, Release

CONFIDENT = 0.5
"""Score from which a box counts as seen without doubt."""

CLEAR = 0.3
"""Score from which an expected box must be found: the default threshold and what a lower precision may shift."""

OWN_IOU = 0.9
OWN_SHARE = 0.95
SERVING_IOU = 0.5
SERVING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class SightReport:
    """How a candidate fared: boxes expected and found again in its own and in the serving version's golden images."""

    images: int
    expected: int
    matched: int
    serving_expected: int = 0
    serving_matched: int = 0


def check_sight(release: Release, detect: Callable[[bytes], Detections], serving: Release | None = None) -> SightReport:
    """Demand that ``release`` sees what it must; blocks for one detection an image.

    Args:
        release: the candidate, with its golden images.
        detect: runs the candidate on encoded image bytes and returns all boxes down to a score of about 0.05.
        serving: the release that serves now; its golden images are tried too where the class names are the same.

    Raises:
        ReleaseRejectedError: step ``golden``; the message gives the numbers.

    """
    if not release.golden:
        _reject("The release carries no golden image, so it cannot prove that it sees")
    expected = matched = confident = 0
    for image in release.golden:
        found = _look(detect, image)
        wanted = image.expected.scores >= CLEAR
        expected += int(wanted.sum())
        hits = match(image.expected, found, iou=OWN_IOU)
        matched += int((hits & wanted).sum())
        confident += int((found.scores >= CONFIDENT).sum())
    if confident == 0:
        _reject(
            f"The release is blind: in {len(release.golden)} golden images it finds no box with a score of "
            f"{CONFIDENT} or more, {expected} boxes are expected"
        )
    if expected - matched > max(1, int(expected * (1 - OWN_SHARE))) or matched == 0:
        _reject(f"The release finds only {matched} of {expected} expected boxes in its golden images")
    again_expected, again_matched = 0, 0
    if serving is not None and serving.digest != release.digest and serving.contract.names == release.contract.names:
        again_expected, again_matched = _check_against(serving, detect)
    return SightReport(len(release.golden), expected, matched, again_expected, again_matched)


def match(expected: Detections, found: Detections, *, iou: float) -> NDArray[np.bool_]:
    """Return bool (len(expected),): which expected boxes have a found one of their class with at least ``iou`` overlap.

    Each found box serves once; expected boxes choose in order of falling score, as in the COCO evaluation.
    """
    hits = np.zeros(len(expected), np.bool_)
    if not len(expected) or not len(found):
        return hits
    overlap = box_iou(expected.boxes, found.boxes)
    overlap[expected.classes[:, None] != found.classes[None, :]] = -1.0
    for index in np.argsort(-expected.scores, kind="stable"):
        best = int(overlap[index].argmax())
        if overlap[index, best] >= iou:
            hits[index] = True
            overlap[:, best] = -1.0
    return hits


def box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the intersection over union, float64 (n, m), 0 to 1, of boxes (n, 4) and (m, 4) as x1 y1 x2 y2."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = sides.prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    overlap: NDArray[np.float64] = shared / np.maximum(union, 1e-9)
    return overlap


def _check_against(serving: Release, detect: Callable[[bytes], Detections]) -> tuple[int, int]:
    expected = matched = 0
    for image in serving.golden:
        wanted = image.expected.scores >= CONFIDENT
        expected += int(wanted.sum())
        matched += int((match(image.expected, _look(detect, image), iou=SERVING_IOU) & wanted).sum())
    if matched < expected * SERVING_SHARE:
        _reject(
            f"The release finds only {matched} of the {expected} boxes that version {serving.version}, which serves "
            f"now, is sure of; at least half are demanded"
        )
    return expected, matched


def _look(detect: Callable[[bytes], Detections], image: GoldenImage) -> Detections:
    try:
        found = detect(image.data)
    except BackendError as error:
        _reject(f"The release fails on the golden image {image.name} ({error})")
    except InvalidImageError as error:
        _reject(f"The golden image {image.name} cannot be decoded ({error})")
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        _reject(f"The release is blind: it answers NaN or infinity on the golden image {image.name}")
    return found


def _reject(what: str) -> NoReturn:
    msg = f"{what}; promote another version."
    raise ReleaseRejectedError(msg, step="golden")
