"""Decoding: every mode, orientation, truncation and limit."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from models.engine.decode import DecodeLimits, decode
from models.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError

ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WEBP")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return ``image`` as bytes of that format, without loss where it can."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return buffer.getvalue()


def smooth(height: int = 20, width: int = 36) -> np.ndarray:
    """Return a picture with another colour in each corner, that JPEG keeps almost exactly."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack((255 * x, 255 * y, 255 * (1 - x) * (1 - y)), axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_orientation_is_obeyed_in_every_format(kind: str, orientation: int) -> None:
    """All eight values of the tag give what Pillow's own transpose gives; unknown ones count as upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(smooth()), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decode(data)
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    assert np.abs(found.astype(int) - expected).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_counts_as_upright() -> None:
    """A photograph is not refused for its metadata."""
    data = encode(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).shape == (20, 36, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_become_rgb(mode: str) -> None:
    """Grey, palette, 1-bit and alpha pictures come out as Pillow converts them; alpha is dropped."""
    image = Image.fromarray(smooth()).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(encode(image, "PNG")), expected)


def test_alpha_is_dropped_not_blended() -> None:
    """The colour under a transparent pixel is what counts, as with cv2.imread."""
    pixels = np.full((4, 4, 4), (10, 200, 30, 0), np.uint8)
    assert (decode(encode(Image.fromarray(pixels), "PNG")) == (10, 200, 30)).all()
    assert (decode(encode(Image.fromarray(pixels), "WEBP", exact=True)) == (10, 200, 30)).all()


def test_palette_with_transparency() -> None:
    """A transparent palette entry keeps its colour."""
    image = Image.fromarray(smooth()).quantize(8)
    assert np.array_equal(decode(encode(image, "PNG", transparency=0)), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_the_high_byte() -> None:
    """A grey PNG of 16 bits is scaled, not clipped."""
    grey = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000 + 5).astype(np.uint16)
    found = decode(encode(Image.fromarray(grey), "PNG"))
    assert np.array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes_become_rgb(mode: str, progressive: bool) -> None:  # noqa: FBT001 - a test's parameter
    """Grey and CMYK JPEGs come out as Pillow converts them, baseline or progressive."""
    data = encode(Image.fromarray(smooth()).convert(mode), "JPEG", progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_give_their_first_frame(kind: str) -> None:
    """Only the first picture of an animation is looked at."""
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    assert (decode(encode(first, kind, save_all=True, append_images=[second])) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", FORMATS)
@given(cut=st.floats(0.0, 0.97))
def test_truncated_images_are_refused(kind: str, cut: float) -> None:
    """No prefix of a picture is taken for the picture, and none escapes as another error."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(InvalidImageError):
        decode(data[: int(len(data) * cut)])


@pytest.mark.parametrize("kind", FORMATS)
@given(seed=st.integers(0, 2**32 - 1))
def test_damage_never_escapes(kind: str, seed: int) -> None:
    """Overwritten bytes give a picture or an InvalidImageError, nothing else."""
    random = np.random.default_rng(seed)
    data = bytearray(encode(Image.fromarray(smooth()), kind))
    for where in random.integers(4, len(data), 8):
        data[where] = random.integers(0, 256)
    try:
        pixels = decode(bytes(data), DecodeLimits(max_pixels=100_000))
    except InvalidImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_stray_bytes_between_markers_are_forgiven() -> None:
    """A harmless oddity that strict decoding refuses does not cost the client the answer."""
    data = encode(Image.fromarray(smooth()), "JPEG")
    found = decode(data[:-2] + b"\x00\x00" + data[-2:])
    assert found.shape == (20, 36, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8 "]
)
def test_fragments_are_invalid(data: bytes) -> None:
    """Empty bodies and bare magic numbers are invalid images, not unsupported ones."""
    with pytest.raises(InvalidImageError) as caught:
        decode(data)
    assert caught.type is InvalidImageError


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_unsupported(kind: str) -> None:
    """Only the allow-list is decoded, whatever Pillow could open."""
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG or WebP"):
        decode(encode(Image.fromarray(smooth()), kind))


def test_text_is_unsupported() -> None:
    """Text is told from a picture."""
    with pytest.raises(UnsupportedImageError):
        decode(b"hello, this is no image")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that says it is that large and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def webp_header(width: int, height: int) -> bytes:
    """Return a WebP that says its canvas is that large and holds nothing."""
    canvas = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + canvas


@pytest.mark.parametrize("header", [png_header, webp_header])
def test_size_is_refused_from_the_header(header: object) -> None:
    """A picture that only claims to be huge is refused for its size, before its missing pixels are noticed."""
    with pytest.raises(ImageTooLargeError, match="20000 x 20000"):
        decode(header(20_000, 20_000))
    with pytest.raises(ImageTooLargeError, match="limit is 64000000"):
        decode(header(10_000, 10_000))


def test_jpeg_size_limits() -> None:
    """Side and pixel limits hold for JPEG, at the limit it still decodes."""
    data = encode(Image.fromarray(smooth(20, 36)), "JPEG")
    assert decode(data, DecodeLimits(max_pixels=720, max_side=36)).shape == (20, 36, 3)
    with pytest.raises(ImageTooLargeError, match="longest side"):
        decode(data, DecodeLimits(max_side=35))
    with pytest.raises(ImageTooLargeError, match="limit is 719"):
        decode(data, DecodeLimits(max_pixels=719))


def test_byte_limit() -> None:
    """The encoded size counts before anything is parsed."""
    with pytest.raises(ImageTooLargeError, match="11 bytes, the limit is 10"):
        decode(b"x" * 11, DecodeLimits(max_bytes=10))


def test_a_text_chunk_bomb_is_never_unfolded() -> None:
    """A text chunk that inflates to 200 MB costs nothing: no text is read."""
    data = encode(Image.fromarray(smooth()), "PNG")
    packed = b"bomb\0\0" + zlib.compress(bytes(200 * 1024 * 1024), 9)
    tracemalloc.start()
    found = decode(data[:33] + png_chunk(b"zTXt", packed) + data[33:])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, smooth())
    assert peak < 4 * 1024 * 1024


def test_a_patched_opener_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing PIL.Image.open, as importing ultralytics does, changes nothing."""

    def trap(*_: object, **__: object) -> None:
        msg = "the patched opener was called"
        raise AssertionError(msg)

    for_use = {kind: encode(Image.fromarray(smooth()), kind) for kind in FORMATS}
    monkeypatch.setattr(PIL.Image, "open", trap)
    for data in for_use.values():
        assert decode(data).shape == (20, 36, 3)
    with pytest.raises(UnsupportedImageError):
        decode(b"nonsense")
