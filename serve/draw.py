"""Boxes and labels onto a picture, for people: ``steelyard detect --save``."""

from __future__ import annotations

import colorsys
import io
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from models.engine.decode import decode
from models.errors import InvalidImageError, InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve.client import Box

Colour = tuple[int, int, int]

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_GOLDEN_RATIO = 0.618033988749895
_SMALLEST_TEXT = 11
_BRIGHT = 140.0


def picture_format(name: str | PurePath) -> str:
    """Return the encoder's name for a file name's suffix. Raises InvalidOptionError for any other suffix."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in _FORMATS:
        msg = f"cannot write pictures as {suffix or 'a file without suffix'}; end the name in .jpg, .png or .webp"
        raise InvalidOptionError(msg)
    return _FORMATS[suffix]


def class_colour(class_id: int) -> Colour:
    """Return the RGB colour (0 to 255) of a class: the same in every picture, neighbours far apart in hue."""
    hue = (class_id * _GOLDEN_RATIO) % 1.0
    value = 0.95 if class_id % 2 == 0 else 0.75
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image: bytes, boxes: Sequence[Box], *, name: str | PurePath) -> bytes:
    """Return ``image`` upright with every box and its label drawn, encoded by the suffix of ``name``.

    Args:
        image: an encoded picture.
        boxes: corners in pixels of the upright picture; drawn from the least confident to the most.
        name: the file name to come; only its suffix matters (.jpg, .jpeg, .png, .webp).

    Raises:
        InvalidOptionError: another suffix.
        InvalidImageError: ``image`` is not a picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    encoder = picture_format(name)
    try:
        canvas = Image.fromarray(decode(image))
    except InvalidImageError:
        msg = "the file cannot be read as a picture, so nothing can be drawn on it; send a JPEG, PNG or WebP file"
        raise InvalidImageError(msg) from None
    short = min(canvas.size)
    width = max(1, round(short / 200))
    font = ImageFont.load_default(size=max(_SMALLEST_TEXT, short / 32))
    draw = ImageDraw.Draw(canvas)
    ordered = sorted(boxes, key=lambda box: box.confidence)
    for box in ordered:
        corners = _inside(box, canvas.size)
        draw.rectangle(corners, outline=class_colour(box.class_id), width=width)
    taken: list[tuple[float, float, float, float]] = []
    for box in reversed(ordered):
        _label(draw, box, canvas.size, font, taken)
    out = io.BytesIO()
    canvas.save(out, encoder, quality=92)
    return out.getvalue()


def _inside(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    x1, x2 = sorted((min(max(box.x1, 0), width - 1), min(max(box.x2, 0), width - 1)))
    y1, y2 = sorted((min(max(box.y1, 0), height - 1), min(max(box.y2, 0), height - 1)))
    return x1, y1, x2, y2


def _label(
    draw: Any, box: Box, size: tuple[int, int], font: Any, taken: list[tuple[float, float, float, float]]
) -> None:
    """Write the label where it covers no label written before: above the box, inside its top, or below it."""
    text = f"{box.name} {box.confidence:.2f}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = 2
    wide, high = right - left + 2 * pad, bottom - top + 2 * pad
    x1, y1, _, y2 = _inside(box, size)
    x = max(0.0, min(x1, size[0] - wide))
    places = [(x, y, x + wide, y + high) for y in (y1 - high, y1, y2 - high, y2) if 0 <= y <= size[1] - high]
    fallback = (x, max(0.0, min(y1, size[1] - high)), x + wide, max(0.0, min(y1, size[1] - high)) + high)
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), (places or [fallback])[0])
    taken.append(place)
    colour = class_colour(box.class_id)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.rectangle(place, fill=colour)
    draw.text(
        (place[0] + pad - left, place[1] + pad - top), text, font=font, fill="black" if luminance > _BRIGHT else "white"
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
