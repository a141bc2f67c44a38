"""What a PNG's chunks say before any of it is decoded, and the same picture without what does not change a pixel.

Chunks are those of the PNG specification (third edition, section 11). Readers in general parse every chunk in Python
and inflate profiles and texts one by one: a million empty chunks take them seconds, 20 000 packed profiles minutes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from models.errors import ImageTooLargeError

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS: Final = 65_536
"""Most chunks; encoders write image data in pieces of 4 KiB and more, of which 20 MB hold 5000."""
MAX_TEXT_BYTES: Final = 1024 * 1024
"""Most bytes that a packed text with an orientation may unfold to."""
MAX_RAW_EXIF: Final = 256 * 1024
"""Most bytes of an EXIF block written as text: the block has 64 KiB at most, two letters a byte."""
_HEADER_BYTES: Final = 13
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_XMP: Final = b"XML:com.adobe.xmp"
_RAW_EXIF: Final = b"Raw profile type exif"
_END: Final = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(slots=True)
class PngHeader:
    """What a PNG announces: width and height (pixels), bits a channel, channels, its EXIF and XMP blocks.

    picture: the same PNG without metadata and further frames. seen: the texts with an orientation that have been read.
    """

    width: int
    height: int
    depth: int
    channels: int
    exif: bytes | None = None
    xmp: bytes | None = None
    picture: bytes = b""
    seen: frozenset[bytes] = frozenset()

    @property
    def unfolded_bytes(self) -> int:
        """Return how many bytes its compressed data unfold to, the interlacing's few besides left out."""
        return self.height * (1 + -(-self.width * self.depth * self.channels // 8))

    @property
    def held_bytes(self) -> int:
        """Return how many bytes a pixel takes in Pillow's memory."""
        grey = self.channels == 1
        return 4 if not grey else 2 if self.depth == 16 else 1  # noqa: PLR2004 - bits


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header chunk. Raises ValueError or struct.error where there is none."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, len(SIGNATURE))
    if kind != b"IHDR" or length < _HEADER_BYTES:
        msg = "no header chunk"
        raise ValueError(msg)
    return width, height


def read_png(data: bytes) -> PngHeader:
    """Return what the chunks of ``data``, which begins with the signature, say.

    The image is that of the IDAT chunks, which an animation shows first or instead of itself.

    Raises:
        ImageTooLargeError: more chunks than any encoder writes.
        ValueError, KeyError, struct.error: damaged.

    """
    width, height = read_size(data)
    depth, colour = data[24], data[25]
    header = PngHeader(width, height, depth, _CHANNELS[colour])
    needed = [SIGNATURE]
    pixels: list[memoryview] = []
    view = memoryview(data)
    position, ended = len(SIGNATURE), False
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if kind == b"IDAT":
            # What other chunks part from the first run is of no image.
            if not ended:
                pixels.append(view[start:end])
        elif kind == b"IEND":
            break
        else:
            ended = bool(pixels)
            if end > len(data):
                break
            if kind == b"IHDR" and len(needed) > 1:
                # Decoders obey the last one, and what was checked is the first.
                msg = "two header chunks"
                raise ValueError(msg)
            if kind in {b"IHDR", b"PLTE"} and not pixels:
                needed.append(data[position : end + 4])
            else:
                _read_metadata(header, kind, view[start:end])
        position = end + 4
    else:
        msg = f"the PNG has more than {MAX_CHUNKS} chunks and is not decoded; save it again"
        raise ImageTooLargeError(msg)
    if not pixels:
        msg = "no image data"
        raise ValueError(msg)
    packed = sum(map(len, pixels))
    # Decoders that look at the check sum of image data are not used; the data carry one of their own.
    needed += [struct.pack(">I4s", packed, b"IDAT"), *map(bytes, pixels), b"\0\0\0\0", _END]
    header.picture = b"".join(needed)
    return header


def _read_metadata(header: PngHeader, kind: bytes, body: memoryview) -> None:
    if kind == b"eXIf":
        header.exif = bytes(body)
    elif kind == b"iTXt" and _is_first(header, _XMP, body):
        header.xmp = _international(bytes(body[len(_XMP) + 1 :]))
    elif kind in {b"tEXt", b"zTXt"} and _is_first(header, _RAW_EXIF, body) and header.exif is None:
        text = bytes(body[len(_RAW_EXIF) + 1 :])
        header.exif = _raw_profile(_inflate(text[1:]) if kind == b"zTXt" else text)


def _is_first(header: PngHeader, keyword: bytes, body: memoryview) -> bool:
    """Return whether this is the first text of that keyword: only one is unfolded, however it turns out."""
    if keyword in header.seen or body[: len(keyword) + 1] != keyword + b"\0":
        return False
    header.seen |= {keyword}
    return True


def _international(rest: bytes) -> bytes | None:
    packed, _, rest = rest[:1], rest[1:2], rest[2:]
    parts = rest.split(b"\0", 2)
    if len(parts) != 3:  # noqa: PLR2004 - language, translated keyword, text
        return None
    return _inflate(parts[2]) if packed == b"\x01" else parts[2]


def _inflate(packed: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return None


def _raw_profile(text: bytes | None) -> bytes | None:
    """Return the EXIF block that ImageMagick wrote as text before there was a chunk for it: name, length, hex."""
    lines = (text or b"")[:MAX_RAW_EXIF].split(b"\n", 3)
    try:
        return bytes.fromhex(lines[3].decode("latin-1")) or None
    except (IndexError, ValueError):
        return None
