"""The canary: does the serving release still see? Cheap enough to ask whenever an engine has been idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from models.engine.preprocess import PAD_VALUE
from models.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from numpy.typing import NDArray

    from models.types import Detections, Release

CANARY_IOU = 0.5
CANARY_SCORE = 0.5
SIDE = 32


async def check_canary(release: Release, look: Callable[[bytes], Awaitable[Detections]]) -> None:
    """Look at the first golden image that shows something for certain, and demand one of its boxes.

    A release without such an image must only answer a grey square. ``look`` runs the serving release on encoded bytes.
    Raises BackendError when it is blind or fails, and whatever else ``look`` raises.
    """
    for image in release.golden:
        certain = image.expected.scores >= CANARY_SCORE
        if certain.any():
            found = await look(image.data)
            if not _any_match(image.expected, certain, found):
                msg = f"version {release.version} sees nothing in a picture it knows; roll back or restart this replica"
                raise BackendError(msg)
            return
    encoded, data = cv2.imencode(".png", np.full((SIDE, SIDE, 3), PAD_VALUE, np.uint8))
    if encoded:
        await look(data.tobytes())


def _any_match(expected: Detections, certain: NDArray[np.bool_], found: Detections) -> bool:
    for box, class_id in zip(expected.boxes[certain], expected.classes[certain], strict=True):
        same = found.boxes[found.classes == class_id]
        shared = np.clip(np.minimum(same[:, 2:], box[2:]) - np.maximum(same[:, :2], box[:2]), 0, None).prod(axis=1)
        union = (same[:, 2:] - same[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - shared
        if (shared >= CANARY_IOU * np.maximum(union, 1e-9)).any():
            return True
    return False
