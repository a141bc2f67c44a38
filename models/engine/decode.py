"""Encoded bytes become upright RGB pixels, within limits that are checked before any pixel is allocated.

The rules, the same whichever decoder runs:
- JPEG, PNG and WebP only, told by their first bytes.
- The orientation tag (EXIF, else XMP) is obeyed, values 1 to 8; a damaged or unknown tag counts as upright.
- Alpha is dropped, not blended, as ``cv2.imread`` does; palettes, grey, CMYK and 1-bit become RGB.
- 16 bits a channel keep their high byte.
- Of an animation the first frame is taken.

Pillow's plugin classes are used directly and never ``Image.open``: importing ultralytics replaces that function by one
that tries to install packages when an upload cannot be identified.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
import simplejpeg
from PIL import ExifTags, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from models.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MIB = 1024 * 1024
JPEG_MAGIC: Final = b"\xff\xd8\xff"
PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
START_OF_SCAN: Final = b"\xff\xda"
MAX_SCANS: Final = 500
SCAN_PASSES: Final = 20
"""A JPEG may cost as much as this many scans over the largest image allowed; encoders write about 10."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Largest image accepted: encoded size in bytes, width x height in pixels, longest side in pixels; all >= 1."""

    max_bytes: int = 20 * MIB
    max_pixels: int = 64_000_000
    max_side: int = 16_384


def decode(data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
    """Return the upright image as uint8 (h, w, 3) RGB, C-contiguous, owned by the caller.

    Args:
        data: one encoded image.
        limits: None means the defaults of DecodeLimits.

    Raises:
        UnsupportedImageError: not JPEG, PNG or WebP.
        ImageTooLargeError: a limit is exceeded; found from the header, at no cost.
        InvalidImageError: empty, truncated or damaged.

    """
    limits = limits or DecodeLimits()
    if not data:
        _refuse("the image is empty; send the bytes of a JPEG, PNG or WebP file")
    if len(data) > limits.max_bytes:
        msg = (
            f"the image has {len(data)} bytes, the limit is {limits.max_bytes}; send a smaller one or compress it more"
        )
        raise ImageTooLargeError(msg)
    if data.startswith(JPEG_MAGIC):
        return _checked("JPEG", _decode_jpeg, data, limits)
    if data.startswith(PNG_MAGIC):
        return _checked("PNG", _decode_png, data, limits)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _checked("WebP", _decode_webp, data, limits)
    msg = "the bytes are not a JPEG, PNG or WebP image; convert the image to one of these"
    raise UnsupportedImageError(msg)


def _checked(
    kind: str,
    decoder: Callable[[bytes, DecodeLimits], NDArray[np.uint8]],
    data: bytes,
    limits: DecodeLimits,
) -> NDArray[np.uint8]:
    # Decoders of damaged files raise nearly anything: OSError, ValueError, SyntaxError, struct.error, IndexError...
    # MemoryError says nothing of the image and is left alone.
    try:
        return decoder(data, limits)
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:
        msg = f"the {kind} image is truncated or damaged; send the complete file"
        raise InvalidImageError(msg) from error


def _decode_jpeg(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    with JpegImageFile(io.BytesIO(data)) as header:
        _check_size(*header.size, limits)
        _check_scans(data, header.width * header.height, limits)
        orientation = _orientation(header)
        if header.mode in {"RGB", "L"}:
            try:
                pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
            except ValueError:
                # Strict refuses harmless oddities too (stray bytes between markers); Pillow tells them from truncation.
                pixels = _pixels(header)
        else:
            pixels = _pixels(header)
    return _upright(pixels, orientation)


def _decode_png(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    width, height = struct.unpack(">II", data[16:24])
    _check_size(width, height, limits)
    with PngImageFile(io.BytesIO(data)) as image:
        _check_size(*image.size, limits)
        pixels = _pixels(image)
        return _upright(pixels, _orientation(image))


def _decode_webp(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
    # Opening a WebP allocates its canvas, so the size is read by hand first.
    _check_size(*_webp_size(data), limits)
    with WebPImageFile(io.BytesIO(data)) as image:
        _check_size(*image.size, limits)
        pixels = _pixels(image)
        return _upright(pixels, _orientation(image))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from a WebP's first chunk: RFC 9649, sections 2.5 to 2.7."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25:  # noqa: PLR2004 - where the size field ends
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30:  # noqa: PLR2004 - where the size field ends
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    msg = "no image chunk where the first one must be"
    raise ValueError(msg)


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if width < 1 or height < 1:
        _refuse(f"the image is {width} x {height} pixels; send one with at least one pixel")
    if max(width, height) > limits.max_side:
        msg = (
            f"the image is {width} x {height} pixels, the longest side allowed is {limits.max_side}; "
            "scale it down or cut it into tiles"
        )
        raise ImageTooLargeError(msg)
    if width * height > limits.max_pixels:
        msg = (
            f"the image is {width} x {height} = {width * height} pixels, the limit is {limits.max_pixels}; "
            "scale it down or cut it into tiles"
        )
        raise ImageTooLargeError(msg)


def _check_scans(data: bytes, pixels: int, limits: DecodeLimits) -> None:
    # Every scan of a progressive JPEG visits the whole picture: a few kilobytes could keep a decoder busy for minutes.
    # The marker cannot occur inside compressed data; metadata may hold a few, which the limits leave room for.
    scans = data.count(START_OF_SCAN)
    if scans > MAX_SCANS or scans * pixels > max(SCAN_PASSES * limits.max_pixels, pixels):
        msg = f"the JPEG has {scans} scans, more than its size allows; save it again as a baseline JPEG"
        raise ImageTooLargeError(msg)


def _pixels(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        return _grey_to_rgb((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    image.load()
    if image.mode == "I":
        # Some grey PNGs of 16 bits open as 32-bit integers that hold 0 to 65535.
        return _grey_to_rgb((np.asarray(image, np.int32) >> 8).clip(0, 255).astype(np.uint8))
    converted = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(converted, np.uint8)


def _grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - damaged metadata raises anything, and a photograph is worth more than its tag
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo the orientation tag, 1 to 8 as EXIF 2.32 section 4.6.4 numbers it."""
    if orientation >= 5:  # noqa: PLR2004 - 5 to 8 swap the sides
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _refuse(message: str) -> NoReturn:
    raise InvalidImageError(message)
