"""Drawing: boxes where they are, labels inside the picture, formats by suffix."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.errors import InvalidImageError, InvalidOptionError
from serve.client import Box
from serve.draw import class_colour, draw_boxes, picture_format


def picture(width: int = 320, height: int = 240, *, orientation: int | None = None) -> bytes:
    """Return a grey picture as PNG, with an EXIF orientation where one is given."""
    out = io.BytesIO()
    image = Image.new("RGB", (width, height), (128, 128, 128))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(out, "PNG", exif=exif)
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """Return a picture's pixels as uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


BOX = Box("apple", 3, 0.87, 40.0, 100.0, 200.0, 180.0)


def test_box_is_drawn_where_it_is() -> None:
    """The outline lies on the box's edges in the class's colour, and its middle is untouched."""
    drawn = pixels(draw_boxes(picture(), [BOX], name="out.png"))

    assert tuple(drawn[180, 120]) == class_colour(3)
    assert tuple(drawn[140, 40]) == class_colour(3)
    assert tuple(drawn[140, 120]) == (128, 128, 128)


def test_label_is_written() -> None:
    """Above the box something is written that another name would write differently."""
    one = draw_boxes(picture(), [BOX], name="out.png")
    other = draw_boxes(picture(), [Box("pear", *(3, 0.87, 40.0, 100.0, 200.0, 180.0))], name="out.png")

    assert (pixels(one)[80:100] != 128).any()
    assert one != other


def test_nothing_to_draw_leaves_the_picture() -> None:
    """Without boxes the pixels stay."""
    assert (pixels(draw_boxes(picture(), [], name="out.png")) == 128).all()


def test_picture_is_turned_upright() -> None:
    """Boxes are in pixels of the upright picture, so that is what they are drawn on."""
    assert pixels(draw_boxes(picture(320, 240, orientation=6), [], name="out.png")).shape == (320, 240, 3)


@pytest.mark.parametrize(
    ("name", "encoder"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("b/c.png", "PNG"), ("d.webp", "WEBP")]
)
def test_format_follows_the_suffix(name: str, encoder: str) -> None:
    """The suffix of the name decides the encoder."""
    assert picture_format(name) == encoder
    assert Image.open(io.BytesIO(draw_boxes(picture(), [BOX], name=name))).format == encoder


@pytest.mark.parametrize("name", ["a.gif", "a", "a.txt"])
def test_other_suffixes_are_refused(name: str) -> None:
    """A suffix that we do not write is told by its name."""
    with pytest.raises(InvalidOptionError):
        draw_boxes(picture(), [], name=name)


@pytest.mark.parametrize("data", [b"", b"text", picture()[:200]])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """Bytes that are no complete picture end in our own error."""
    with pytest.raises(InvalidImageError):
        draw_boxes(data, [BOX], name="out.png")


def test_neighbouring_classes_differ() -> None:
    """Colours are stable, and twelve classes have twelve of them, far apart."""
    colours = [np.array(class_colour(number), np.int64) for number in range(12)]

    assert class_colour(5) == class_colour(5)
    assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 30


EDGE = st.floats(-1e6, 1e6)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    boxes=st.lists(
        st.builds(
            Box,
            name=st.text(st.characters(codec="utf-8"), max_size=20),
            class_id=st.integers(0, 1000),
            confidence=st.floats(0, 1),
            x1=EDGE,
            y1=EDGE,
            x2=EDGE,
            y2=EDGE,
        ),
        max_size=4,
    ),
)
def test_any_box_on_any_picture_is_drawn(size: tuple[int, int], boxes: list[Box]) -> None:
    """Boxes outside, upside down or larger than a tiny picture neither fail nor change its size."""
    drawn = pixels(draw_boxes(picture(*size), boxes, name="out.png"))

    assert drawn.shape == (size[1], size[0], 3)
