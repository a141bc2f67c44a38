"""The canary: blindness of what serves is found, and only blindness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.canary import check_canary
from models.engine.decode import decode
from models.errors import BackendError
from models.types import Detections, GoldenImage

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Return detections of these x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4].copy(), table[:, 4].copy(), table[:, 5].astype(np.int32))


EXPECTED = boxes((0, 0, 10, 10, 0.9, 1), (20, 20, 40, 40, 0.7, 2), (50, 50, 60, 60, 0.2, 0))


async def check(make_release: Callable[..., Release], found: Detections) -> list[bytes]:
    """Check a release with three golden images, of which the second is the first to show something for certain."""
    names = ("unsure", "sure", "later")
    expected = (boxes((0, 0, 5, 5, 0.3, 0)), EXPECTED, EXPECTED)
    golden = tuple(GoldenImage(n, n.encode(), e) for n, e in zip(names, expected, strict=True))
    looked: list[bytes] = []

    async def look(data: bytes) -> Detections:
        looked.append(data)
        return found

    await check_canary(make_release(golden=golden), look)
    return looked


@pytest.mark.parametrize(
    "found", [boxes((1, 0, 10, 10, 0.6, 1)), boxes((0, 0, 3, 3, 0.9, 0), (21, 20, 40, 40, 0.5, 2))]
)
async def test_one_known_box_is_enough(make_release: Callable[..., Release], found: Detections) -> None:
    """It looks once, at the first sure picture."""
    assert await check(make_release, found) == [b"sure"]


@pytest.mark.parametrize(
    "found",
    [
        boxes(),
        boxes((0, 0, 10, 10, 0.9, 2)),
        boxes((30, 0, 40, 10, 0.9, 1)),
        boxes((50, 50, 60, 60, 0.9, 0)),
    ],
)
async def test_blindness_is_an_error(make_release: Callable[..., Release], found: Detections) -> None:
    """Nothing, wrong classes, wrong places and boxes that were never certain do not count."""
    with pytest.raises(BackendError, match="sees nothing"):
        await check(make_release, found)


async def test_without_golden_images_it_must_only_answer(make_release: Callable[..., Release]) -> None:
    """A grey square is sent; its answer may be empty."""
    shapes = []

    async def look(data: bytes) -> Detections:
        shapes.append(decode(data).shape)
        return boxes()

    await check_canary(make_release(), look)
    assert shapes == [(32, 32, 3)]
