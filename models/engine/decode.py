"""Encoded bytes become upright RGB pixels, within limits that are checked before any pixel is allocated.

The rules, the same whichever decoder runs:
- JPEG, PNG and WebP only, told by their first bytes.
- The orientation tag (EXIF, else XMP) is obeyed, values 1 to 8; a damaged or unknown tag counts as upright.
- Alpha is dropped, not blended, as ``cv2.imread`` does; palettes, grey, CMYK and 1-bit become RGB.
- 16 bits a channel keep their high byte.
- Of an animation the first frame is taken.

A thread that decodes cannot be stopped, so ``examine`` bounds the work beforehand: it reads the markers or chunks
itself, and decoders get the picture without what does not change a pixel. Pillow's plugin classes are used directly
and never ``Image.open``: importing ultralytics replaces that function by one that tries to install packages when an
upload cannot be identified.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import cv2
import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from models.engine import png_chunks, webp_chunks
from models.engine.jpeg_scans import check_work, read_jpeg
from models.engine.orientation import make_upright, read_orientation, turned_bytes
from models.engine.png_chunks import read_png
from models.engine.webp_chunks import read_webp
from models.errors import ImageTooLargeError, InvalidImageError, SteelyardError, UnavailableError, UnsupportedImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from PIL import ImageFile

    from models.engine.jpeg_scans import JpegHeader

ResultT = TypeVar("ResultT")

MIB = 1024 * 1024
JPEG_MAGIC: Final = b"\xff\xd8\xff"
PNG_MAGIC: Final = png_chunks.SIGNATURE
MAX_MEMORY: Final = 280 * MIB
"""What one image may take while it is decoded, unless the budget for all is larger (bytes)."""
MAX_UNFOLDED: Final = 0.6
"""Bytes that a PNG's data may unfold to, for each byte that an image may take: filters take up to 10 ns a byte."""
RGB: Final = 3
BLOCK_BYTES: Final = 128
"""What a decoder keeps of each block of a JPEG of several scans."""
STRIP_PIXELS: Final = 1_000_000
"""Pixels that are converted at once, so that an image is never held in three ways."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Largest image accepted; all are >= 1.

    max_bytes: encoded size. max_pixels: width x height. max_side: the longer of the two, in pixels. max_memory: bytes
    that decoding takes at its peak; 64 megapixels of a baseline JPEG take 183 MiB (366 where it lies on its side), of
    other files up to 550.
    """

    max_bytes: int = 20 * MIB
    max_pixels: int = 64_000_000
    max_side: int = 16_384
    max_memory: int = MAX_MEMORY


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """An image whose announced size and work lie within the limits.

    kind: for messages. memory: about how many bytes decoding takes at its peak, its result included.
    orientation: 1 to 8. load: decodes without turning, raises anything.
    """

    kind: str
    memory: int
    orientation: int
    load: Callable[[], NDArray[np.uint8]]

    def pixels(self) -> NDArray[np.uint8]:
        """Return the upright image as uint8 (h, w, 3) RGB, C-contiguous, owned by the caller.

        Raises InvalidImageError where the image is truncated or damaged, UnavailableError where memory is out.
        """
        return _checked(self.kind, lambda: make_upright(self.load(), self.orientation))


def decode(data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
    """Return the upright image as uint8 (h, w, 3) RGB, C-contiguous, owned by the caller.

    Args:
        data: one encoded image.
        limits: None means the defaults of DecodeLimits.

    Raises:
        UnsupportedImageError: not JPEG, PNG or WebP, or a kind of JPEG that nobody decodes.
        ImageTooLargeError: a limit is exceeded; found from the header, at no cost.
        InvalidImageError: empty, truncated or damaged.
        UnavailableError: there is no memory for it now.

    """
    return examine(data, limits or DecodeLimits()).pixels()


def examine(data: bytes, limits: DecodeLimits) -> Examined:
    """Return what is known of ``data`` before any pixel is decoded; raises what ``decode`` raises for it."""
    if not data:
        _refuse("the image is empty; send the bytes of a JPEG, PNG or WebP file")
    if len(data) > limits.max_bytes:
        msg = (
            f"the image has {len(data)} bytes, the limit is {limits.max_bytes}; send a smaller one or compress it more"
        )
        raise ImageTooLargeError(msg)
    if data.startswith(JPEG_MAGIC):
        return _checked("JPEG", lambda: _examine_jpeg(data, limits))
    if data.startswith(PNG_MAGIC):
        return _checked("PNG", lambda: _examine_png(data, limits))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _checked("WebP", lambda: _examine_webp(data, limits))
    msg = "the bytes are not a JPEG, PNG or WebP image; convert the image to one of these"
    raise UnsupportedImageError(msg)


def _checked(kind: str, step: Callable[[], ResultT]) -> ResultT:
    # Decoders of damaged files raise nearly anything: OSError, ValueError, SyntaxError, struct.error, IndexError...
    try:
        return step()
    except SteelyardError:
        raise
    except MemoryError as error:
        msg = "there is no memory to decode the image now; send it again in a moment, or a smaller one"
        raise UnavailableError(msg) from error
    except Exception as error:
        msg = f"the {kind} image is truncated or damaged; send the complete file"
        raise InvalidImageError(msg) from error


def _examine_jpeg(data: bytes, limits: DecodeLimits) -> Examined:
    header = read_jpeg(data)
    _check_size(header.width, header.height, limits)
    check_work(data, header)
    orientation = read_orientation(header.exif, header.xmp)
    pixels = header.width * header.height
    result = turned_bytes(RGB * pixels, orientation)
    kept = BLOCK_BYTES * header.blocks * header.several_scans
    cmyk = header.components == 4  # noqa: PLR2004
    _check_memory("JPEG", memory := kept + max(result, 7 * pixels if cmyk else 0), limits)

    def load() -> NDArray[np.uint8]:
        if cmyk:
            with JpegImageFile(io.BytesIO(header.without_metadata(data))) as image:
                return _pixels(image, (header.width, header.height))
        return _load_jpeg(data, header)

    return Examined("JPEG", memory, orientation, load)


def _load_jpeg(data: bytes, header: JpegHeader) -> NDArray[np.uint8]:
    try:
        size = simplejpeg.decode_jpeg_header(data)[:2]
    except ValueError:
        # It takes no stray bytes and no damaged profiles before the first scan, which are harmless.
        data = header.without_metadata(data)
        size = simplejpeg.decode_jpeg_header(data)[:2]
    # Whatever the two readers might see otherwise: the size that was checked is the size that is decoded.
    if size != (header.height, header.width):
        msg = "two sizes"
        raise ValueError(msg)
    # Stray bytes later on are harmless, too. That nothing is missing at the end has been seen already.
    return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=False), np.uint8)


def _examine_png(data: bytes, limits: DecodeLimits) -> Examined:
    _check_size(*png_chunks.read_size(data), limits)
    header = read_png(data)
    size = header.width, header.height
    orientation = read_orientation(header.exif, header.xmp)
    pixels = header.width * header.height
    result = RGB * pixels
    memory = len(data) + max(header.held_bytes * pixels + result, turned_bytes(result, orientation))
    _check_memory("PNG", memory, limits)
    if header.unfolded_bytes > (most := int(MAX_UNFOLDED * limits.max_memory)):
        msg = (
            f"the PNG unfolds to {header.unfolded_bytes // MIB} MiB, the limit is {most // MIB}; send it with 8 bits a "
            "channel, or scale it down"
        )
        raise ImageTooLargeError(msg)

    def load() -> NDArray[np.uint8]:
        with PngImageFile(io.BytesIO(header.picture)) as image:
            return _pixels(image, size)

    return Examined("PNG", memory, orientation, load)


def _examine_webp(data: bytes, limits: DecodeLimits) -> Examined:
    _check_size(*webp_chunks.read_size(data), limits)
    header = read_webp(data)
    size = header.width, header.height
    left, top, width, height = header.frame
    orientation = read_orientation(header.exif, header.xmp)
    result, moved = RGB * size[0] * size[1], (width, height) != size
    # The decoder holds its result twice for a moment, and a lossless image in four channels besides.
    frame = (2 * RGB + 4 * header.lossless) * width * height
    memory = len(data) + max(frame + result * moved, turned_bytes(result, orientation))
    _check_memory("WebP", memory, limits)

    def load() -> NDArray[np.uint8]:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        frame = cv2.imdecode(np.frombuffer(header.picture(data), np.uint8), flags)
        if frame is None or frame.shape != (height, width, RGB):
            msg = "no frame"
            raise ValueError(msg)
        frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
        if not moved:
            return np.asarray(frame, np.uint8)
        canvas = np.zeros((size[1], size[0], RGB), np.uint8)
        canvas[top : top + height, left : left + width] = frame
        return canvas

    return Examined("WebP", memory, orientation, load)


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


def _check_memory(kind: str, memory: int, limits: DecodeLimits) -> None:
    if memory > limits.max_memory:
        msg = (
            f"the {kind} takes {memory // MIB} MiB of memory to decode, the limit is {limits.max_memory // MIB}; "
            "scale it down, or send an upright baseline JPEG, which takes the least"
        )
        raise ImageTooLargeError(msg)


def _pixels(image: ImageFile.ImageFile, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return what Pillow decodes as RGB; the size must be what the header said, for that is what was checked."""
    if image.size != size:
        msg = "another size than announced"
        raise ValueError(msg)
    image.load()
    width, height = size
    pixels = np.empty((height, width, RGB), np.uint8)
    rows = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = image if rows >= height else image.crop((0, top, width, bottom))
        if image.mode.startswith("I"):
            # 16 bits, which some grey PNGs of Pillow hold in 32.
            pixels[top:bottom] = (np.asarray(strip).astype(np.uint16) >> 8).astype(np.uint8)[:, :, None]
        else:
            pixels[top:bottom] = np.asarray(strip if image.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _refuse(message: str) -> NoReturn:
    raise InvalidImageError(message)
