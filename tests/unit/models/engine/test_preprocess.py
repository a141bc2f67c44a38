"""The letterbox, held against Ultralytics' formulas written out slowly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.preprocess import PAD_VALUE, letterbox, tensor_shape
from models.types import Contract

SIDES = st.integers(1, 700)


def contract(imgsz: int = 640, *, dynamic: bool = True) -> Contract:
    """Return a contract of that size."""
    return Contract("detect", ("thing",), 32, imgsz, "end2end", dynamic)


@given(height=SIDES, width=SIDES)
def test_shape_follows_from_the_image_alone(height: int, width: int) -> None:
    """The long side is imgsz, the short one the least multiple of the stride that holds the scaled image."""
    shape = tensor_shape(height, width, contract(320))
    ratio = 320 / max(height, width)
    expected = tuple(32 * math.ceil(max(round(side * ratio), 1) / 32) for side in (height, width))
    assert shape == expected
    assert max(shape) == 320


@given(height=SIDES, width=SIDES, dynamic=st.booleans())
def test_letterbox_keeps_its_shape_and_placement(height: int, width: int, dynamic: bool) -> None:  # noqa: FBT001
    """The tensor has the announced shape; border pixels are grey, and the image lies where the placement says."""
    image = np.full((height, width, 3), 250, np.uint8)
    rules = contract(160, dynamic=dynamic)
    tensor, placement = letterbox(image, rules)
    assert tensor.shape[:2] == tensor_shape(height, width, rules) == placement.tensor
    assert tensor.flags.c_contiguous
    assert placement.original == (height, width)
    inside = (tensor == 250).all(axis=2)
    assert (inside | (tensor == PAD_VALUE).all(axis=2)).all()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert abs(rows[0] - placement.pad_y) <= 1
    assert abs(columns[0] - placement.pad_x) <= 1
    # Ultralytics' one gain for both axes, which the placement copies, is off by up to two pixels on thin images.
    assert abs(len(rows) - placement.gain_y * height) <= 2
    assert abs(len(columns) - placement.gain_x * width) <= 2


@pytest.mark.parametrize(
    ("size", "shape", "pad"),
    [
        ((1080, 810), (640, 480), (0, 0)),
        ((480, 640), (480, 640), (0, 0)),
        ((427, 640), (448, 640), (10, 0)),
        ((1, 1), (640, 640), (0, 0)),
        ((1, 5000), (32, 640), (15, 0)),
        ((640, 427), (640, 448), (0, 10)),
    ],
)
def test_known_placements(size: tuple[int, int], shape: tuple[int, int], pad: tuple[int, int]) -> None:
    """Sizes worked out by hand: 21 spare rows are split 10 above, 11 below."""
    tensor, placement = letterbox(np.zeros((*size, 3), np.uint8), contract())
    assert tensor.shape == (*shape, 3)
    assert (placement.pad_y, placement.pad_x) == pad


def test_static_contract_makes_squares() -> None:
    """Without dynamic shapes every tensor is imgsz x imgsz."""
    tensor, placement = letterbox(np.zeros((100, 200, 3), np.uint8), contract(dynamic=False))
    assert tensor.shape == (640, 640, 3)
    assert (placement.pad_y, placement.pad_x) == (160, 0)


def test_an_image_of_the_right_size_is_untouched() -> None:
    """Nothing is resampled that already fits."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    tensor, _ = letterbox(image, contract())
    assert np.array_equal(tensor, image)
