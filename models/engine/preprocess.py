"""Letterbox: an upright image becomes the tensor that its own shape asks for.

Geometry and arithmetic are those of Ultralytics' ``LetterBox(auto=True, scaleup=True)`` as ``YOLO.predict`` applies it
to one image (``data/augment.py``), and of ``scale_boxes`` (``utils/ops.py``) for the way back, both in 8.4.190.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.types import Contract

PAD_VALUE = 114
"""Grey of the border, 0 to 255: what detectors of the YOLO family are trained with."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies inside its tensor; what turns boxes of the tensor into boxes of the image.

    original, tensor: (height, width) in pixels. gain_y, gain_x: tensor pixels an original pixel, > 0.
    pad_y, pad_x: tensor pixels above and left of the image, >= 0.
    """

    original: tuple[int, int]
    tensor: tuple[int, int]
    gain_y: float
    gain_x: float
    pad_y: int
    pad_x: int


def tensor_shape(height: int, width: int, contract: Contract) -> tuple[int, int]:
    """Return (height, width) in pixels of the tensor of an image of ``height`` x ``width`` pixels (both >= 1).

    The long side becomes ``contract.imgsz``, the short one keeps the aspect ratio and grows to the next multiple of the
    stride; it depends on nothing but the image. With ``contract.dynamic`` False both sides are ``imgsz``.
    """
    resized_height, resized_width = _resized(height, width, contract.imgsz)
    spare_height, spare_width = _spare(resized_height, resized_width, contract)
    return resized_height + spare_height, resized_width + spare_width


def letterbox(image: NDArray[np.uint8], contract: Contract) -> tuple[NDArray[np.uint8], Placement]:
    """Resize and pad ``image``, uint8 (h, w, 3), h and w >= 1.

    Returns the tensor, uint8 (th, tw, 3) C-contiguous in the image's channel order, and its placement.
    """
    height, width = image.shape[:2]
    resized_height, resized_width = _resized(height, width, contract.imgsz)
    spare_height, spare_width = _spare(resized_height, resized_width, contract)
    # Ultralytics splits an odd spare pixel with this +-0.1, so that halves round away from each other.
    top, bottom = round(spare_height / 2 - 0.1), round(spare_height / 2 + 0.1)
    left, right = round(spare_width / 2 - 0.1), round(spare_width / 2 + 0.1)
    if (height, width) != (resized_height, resized_width):
        image = cv2.resize(image, (resized_width, resized_height), interpolation=cv2.INTER_LINEAR)
    if spare_height or spare_width:
        image = cv2.copyMakeBorder(
            image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(PAD_VALUE, PAD_VALUE, PAD_VALUE)
        )
    tensor = np.ascontiguousarray(image)
    return tensor, _placement((height, width), (tensor.shape[0], tensor.shape[1]))


def _resized(height: int, width: int, imgsz: int) -> tuple[int, int]:
    ratio = min(imgsz / height, imgsz / width)
    return max(round(height * ratio), 1), max(round(width * ratio), 1)


def _spare(resized_height: int, resized_width: int, contract: Contract) -> tuple[int, int]:
    spare_height, spare_width = contract.imgsz - resized_height, contract.imgsz - resized_width
    if contract.dynamic:
        return spare_height % contract.stride, spare_width % contract.stride
    return spare_height, spare_width


def _placement(original: tuple[int, int], tensor: tuple[int, int]) -> Placement:
    # scale_boxes derives the gain from the two shapes alone; where the short side was rounded down onto a multiple of
    # the stride that differs from the resize by up to half a tensor pixel. Its formula is kept, for equal boxes.
    gain = min(tensor[0] / original[0], tensor[1] / original[1])
    resized_height, resized_width = max(round(original[0] * gain), 1), max(round(original[1] * gain), 1)
    return Placement(
        original=original,
        tensor=tensor,
        gain_y=resized_height / original[0],
        gain_x=resized_width / original[1],
        pad_y=round((tensor[0] - resized_height) / 2 - 0.1),
        pad_x=round((tensor[1] - resized_width) / 2 - 0.1),
    )
