"""What the reference sees, and whether the exported graph sees the same. Runs in the sandboxed child."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np

from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import ConversionError, InvalidImageError
from models.types import Thresholds
from models.weights.golden import CONFIDENT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from models.engine.preprocess import Placement
    from models.types import Contract, Detections

KEEP = 4
MAX_PIXEL = 1.0
MAX_SCORE = 0.01
EXPECT_FROM = 0.25
LOOK_FROM = 0.05
REENCODE_ABOVE = 1_000_000
REENCODED_SIDE = 1280
_JPEG_QUALITY = 90


class Network(Protocol):
    """A detector as a function: uint8 (n, h, w, 3) RGB to the float32 output that its contract's head promises."""

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A candidate picture, decoded, and what the reference sees in it down to a score of 0.05."""

    name: str
    data: bytes
    shape: tuple[int, int]
    tensor: NDArray[np.uint8]
    placement: Placement
    output: NDArray[np.float32]
    seen: Detections


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences between the graph and the reference over all scenes: pixels, score (0-1)."""

    images: int
    boxes: int
    max_pixel: float
    max_score: float


def look(pictures: Sequence[Path], reference: Network, contract: Contract) -> list[Scene]:
    """Show the reference every picture that can be decoded. Raises ConversionError where none can."""
    scenes = []
    for path in pictures:
        data = path.read_bytes()
        try:
            image = decode(data)
            if len(data) > REENCODE_ABOVE:
                data = _reencode(image)
                image = decode(data)
        except InvalidImageError:
            continue
        tensor, placement = letterbox(image, contract)
        output = reference(tensor[None])[0]
        seen = boxes_of(output, placement, contract)
        height, width = image.shape[:2]
        scenes.append(
            Scene(path.name.partition("-")[2] or path.name, data, (height, width), tensor, placement, output, seen)
        )
    if not scenes:
        msg = "None of the golden pictures can be decoded; give JPEG, PNG or WebP pictures."
        raise ConversionError(msg)
    return scenes


def boxes_of(output: NDArray[np.float32], placement: Placement, contract: Contract) -> Detections:
    """Return the boxes in one image's output down to a score of 0.05. Raises ConversionError for NaN."""
    if not np.isfinite(output).all():
        msg = "The model answers NaN or infinity on real pictures: it is damaged. Use another checkpoint."
        raise ConversionError(msg)
    return postprocess(output, placement, contract, Thresholds(conf=LOOK_FROM))


def check_parity(scenes: Sequence[Scene], graph: Network, contract: Contract, *, batches: bool) -> Parity:
    """Demand that the graph sees what the reference saw: boxes within 1 px and 0.01, scores of the whole output too.

    Args:
        scenes: from ``look``.
        graph: the exported graph as it will be served.
        contract: of both.
        batches: whether the graph takes several images at once; then each must look the same in company.

    Raises:
        ConversionError: it does not.

    """
    boxes, worst_pixel, worst_score = 0, 0.0, 0.0
    for scene in scenes:
        outputs = [graph(scene.tensor[None])[0]]
        if batches:
            outputs.append(graph(np.stack((scene.tensor[:, ::-1], scene.tensor)))[1])
        for output in outputs:
            found = boxes_of(output, scene.placement, contract)
            pixel, score = differences(scene.seen, found)
            whole = np.abs(_scores(output, contract) - _scores(scene.output, contract)).max(initial=0.0)
            worst_pixel, worst_score = max(worst_pixel, pixel), max(worst_score, score, float(whole))
        boxes += int((scene.seen.scores >= EXPECT_FROM).sum())
    if worst_pixel > MAX_PIXEL or worst_score > MAX_SCORE:
        msg = (
            f"The converted model differs from its source by up to {min(worst_pixel, 9999):.2f} px and "
            f"{worst_score:.3f} in score; this kind of model cannot be converted faithfully."
        )
        raise ConversionError(msg)
    return Parity(len(scenes), boxes, round(worst_pixel, 4), round(worst_score, 6))


def differences(expected: Detections, found: Detections) -> tuple[float, float]:
    """Return the largest difference of a box side (pixels) and of a score over the expected boxes of 0.25 or more.

    Each is compared with the found box of its class that differs least; infinity where there is none. Where the
    expectation is full (300 boxes), those at its lower end may be cut off by a hair and are left out.
    """
    floor = EXPECT_FROM
    if len(expected) >= Thresholds().max_det:
        floor = max(floor, float(expected.scores.min()) + 2 * MAX_SCORE)
    pixel = score = 0.0
    for box, value, cls in zip(expected.boxes, expected.scores, expected.classes, strict=True):
        if value < floor:
            continue
        same = found.classes == cls
        if not same.any():
            return float("inf"), float("inf")
        sides = np.abs(found.boxes[same] - box).max(axis=1)
        scores = np.abs(found.scores[same] - value)
        best = int((sides / MAX_PIXEL + scores / MAX_SCORE).argmin())
        pixel, score = max(pixel, float(sides[best])), max(score, float(scores[best]))
    return pixel, score


def choose_golden(scenes: Sequence[Scene]) -> list[Scene]:
    """Return up to four scenes with a box of 0.5 or more, the surest first, so that lower precisions keep them."""
    sure = [scene for scene in scenes if any(score >= CONFIDENT for score in golden_entry(scene, "")["scores"])]
    return sorted(sure, key=_best, reverse=True)[:KEEP]


def golden_entry(scene: Scene, file: str) -> dict[str, Any]:
    """Return the scene's expectation as the manifest holds it: boxes of 0.25 or more, 0.01 px and 0.0001 fine.

    Boxes that the image's border leaves less than a pixel of are no expectation: they overlap with nothing.
    """
    sides = scene.seen.boxes[:, 2:] - scene.seen.boxes[:, :2]
    keep = (scene.seen.scores >= EXPECT_FROM) & (sides >= 1).all(axis=1)
    return {
        "file": file,
        "shape": list(scene.shape),
        "boxes": [[round(float(side), 2) for side in box] for box in scene.seen.boxes[keep]],
        "scores": [round(float(score), 4) for score in scene.seen.scores[keep]],
        "classes": [int(cls) for cls in scene.seen.classes[keep]],
    }


def file_name(index: int, scene: Scene) -> str:
    """Return a safe name below ``golden/``, from the picture's own and the format of its bytes."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", scene.name.rsplit(".", 1)[0]).strip("-")[:40] or "image"
    kind = {b"\xff\xd8": "jpg", b"\x89P": "png"}.get(scene.data[:2], "webp")
    return f"{index}-{stem}.{kind}"


def _best(scene: Scene) -> float:
    return float(scene.seen.scores.max(initial=0.0))


def _scores(output: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """Return every score of one output; sorted where the head sorts, as equal scores may change places."""
    return np.sort(output[:, 4]) if contract.head == "end2end" else output[4:]


def _reencode(image: NDArray[np.uint8]) -> bytes:
    height, width = image.shape[:2]
    scale = min(REENCODED_SIDE / max(height, width), 1.0)
    if scale < 1.0:
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()
