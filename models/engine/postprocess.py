"""From the network's output to boxes of the original image.

Thresholds, class filter, NMS and rounding follow Ultralytics' ``non_max_suppression`` (``utils/nms.py``, 8.4.190) with
``agnostic=False`` and ``multi_label=False``, as ``YOLO.predict`` calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from models.errors import BackendError
from models.types import Detections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.engine.preprocess import Placement
    from models.types import Contract, Thresholds

MAX_NMS = 30_000
"""Most candidate boxes that enter the NMS, the best first: Ultralytics' ``max_nms``."""

BOX = 4
END2END_COLUMNS = 6


def postprocess(
    output: NDArray[np.float32],
    placement: Placement,
    contract: Contract,
    thresholds: Thresholds,
    classes: frozenset[int] | None = None,
) -> Detections:
    """Return the boxes of one image, sorted by falling score.

    Args:
        output: the network's output of this image: float32 (k, 6) of x1, y1, x2, y2, score, class for an ``end2end``
            head, float32 (4 + classes, anchors) of cx, cy, w, h and class scores for a ``raw`` one; tensor pixels.
        placement: where the image lies in its tensor.
        contract: says which head it is and how many classes there are.
        thresholds: a box stays when its score exceeds ``conf``; ``iou`` acts on a ``raw`` head only.
        classes: keep only these ids; they are dropped before the NMS. None keeps all.

    Raises:
        BackendError: the output has another shape than the head promises, or holds NaN or infinity.

    """
    if contract.head == "end2end":
        boxes, scores, ids = _end2end(output, thresholds.conf, classes)
    else:
        boxes, scores, ids = _raw(output, len(contract.names), thresholds, classes)
    best = np.argsort(-scores, kind="stable")[: thresholds.max_det]
    return Detections(_to_image(boxes[best], placement), scores[best], ids[best])


def _end2end(
    output: NDArray[np.float32], conf: float, classes: frozenset[int] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    if output.ndim != 2 or output.shape[1] != END2END_COLUMNS:  # noqa: PLR2004 - rows and columns
        _refuse_shape(output)
    _refuse_non_finite(output)
    keep = output[:, 4] > conf
    ids = output[:, 5].astype(np.int32)
    if classes is not None:
        keep &= np.isin(ids, list(classes))
    return output[keep, :BOX], output[keep, 4], ids[keep]


def _raw(
    output: NDArray[np.float32], class_count: int, thresholds: Thresholds, classes: frozenset[int] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    if output.ndim != 2 or output.shape[0] != BOX + class_count:  # noqa: PLR2004 - rows and columns
        _refuse_shape(output)
    _refuse_non_finite(output)
    candidates = np.flatnonzero(output[BOX:].max(axis=0) > thresholds.conf)
    by_class = output[BOX:, candidates]
    ids = by_class.argmax(axis=0).astype(np.int32)
    if classes is not None:
        wanted = np.isin(ids, list(classes))
        candidates, by_class, ids = candidates[wanted], by_class[:, wanted], ids[wanted]
    scores = by_class.max(axis=0, initial=0.0)
    if len(scores) > MAX_NMS:
        best = np.argsort(-scores, kind="stable")[:MAX_NMS]
        candidates, scores, ids = candidates[best], scores[best], ids[best]
    centre_x, centre_y, width, height = output[:BOX, candidates]
    boxes = np.stack((centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2), axis=1)
    keep = _nms(boxes, scores, ids, thresholds.iou)
    return boxes[keep], scores[keep], ids[keep]


def _nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], ids: NDArray[np.int32], iou: float
) -> NDArray[np.intp]:
    if not len(scores):
        return np.zeros(0, np.intp)
    corner_and_size = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).astype(np.float64)
    batched: Any = cv2.dnn.NMSBoxesBatched  # its type stub knows only lists; arrays spare the copies
    kept = batched(corner_and_size, scores, ids, -1.0, iou)
    return np.asarray(kept, np.intp).reshape(-1)


def _to_image(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    height, width = placement.original
    pad = np.array((placement.pad_x, placement.pad_y) * 2, np.float32)
    gain = np.array((placement.gain_x, placement.gain_y) * 2, np.float32)
    limit = np.array((width, height) * 2, np.float32)
    upright: NDArray[np.float32] = np.clip((boxes - pad) / gain, np.float32(0), limit)
    return upright


def _refuse_shape(output: NDArray[np.float32]) -> None:
    msg = f"the network's output has shape {output.shape}, which its contract does not allow; register the model again"
    raise BackendError(msg)


def _refuse_non_finite(output: NDArray[np.float32]) -> None:
    if not np.isfinite(output).all():
        msg = "the network's output holds NaN or infinity: its weights are damaged; promote another version"
        raise BackendError(msg)
