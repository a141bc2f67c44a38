"""What a WebP's chunks say before any of it is decoded: canvas, the first frame's place and bits, orientation.

Chunks are those of RFC 9649. An animation's decoder would allocate three canvases of four channels at once; the first
frame alone, as a file of its own, needs one of three.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models.errors import ImageTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHUNKS: Final = 65_536
"""Most chunks of an image or animation."""
_IMAGES: Final = frozenset({b"VP8 ", b"VP8L"})
_FRAME_HEADER_BYTES: Final = 16
_LOSSY_SIGNATURE: Final = b"\x9d\x01\x2a"
_LOSSLESS_SIGNATURE: Final = 0x2F


@dataclass(slots=True)
class WebpHeader:
    """What a WebP announces.

    width, height: of the canvas (pixels). frame: (left, top, width, height) of its first frame on the canvas, of which
    the rest is black. bits: (start, end) of the frame's bit stream. lossless: which of the two codings.
    """

    width: int
    height: int
    frame: tuple[int, int, int, int]
    bits: tuple[int, int]
    lossless: bool
    exif: bytes | None = None
    xmp: bytes | None = None

    def picture(self, data: bytes) -> bytes:
        """Return the first frame as a file of its own, without alpha and metadata."""
        start, end = self.bits
        kind = b"VP8L" if self.lossless else b"VP8 "
        size = end - start
        padding = b"\0" * (size & 1)
        head = struct.pack("<4sI4s4sI", b"RIFF", 12 + size + len(padding), b"WEBP", kind, size)
        return b"".join((head, memoryview(data)[start:end], padding))


def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from a WebP's first chunk: RFC 9649, sections 2.5 to 2.7.

    Raises ValueError or struct.error where that is no image's.
    """
    kind = data[12:16]
    if kind == b"VP8X":
        flags_and_canvas = data[20:30]
        if len(flags_and_canvas) < 10:  # noqa: PLR2004 - where the size field ends
            msg = "a header without an end"
            raise ValueError(msg)
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return _bits_size(kind, data, 20)


def _bits_size(kind: bytes, data: bytes, start: int) -> tuple[int, int]:
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, start)
        if signature == _LOSSLESS_SIGNATURE:
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and data[start + 3 : start + 6] == _LOSSY_SIGNATURE:
        width, height = struct.unpack_from("<HH", data, start + 6)
        return width & 0x3FFF, height & 0x3FFF
    msg = "no image where the first one must be"
    raise ValueError(msg)


def read_webp(data: bytes) -> WebpHeader:
    """Return what the chunks of ``data``, which begins with RIFF and WEBP, say.

    Raises:
        ImageTooLargeError: more chunks than any encoder writes.
        ValueError, struct.error: damaged.

    """
    width, height = read_size(data)
    found: WebpHeader | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    for kind, start, end in _chunks(data, 12, len(data)):
        if kind == b"EXIF":
            exif = data[start:end]
        elif kind == b"XMP ":
            xmp = data[start:end]
        elif found is None and kind in _IMAGES:
            found = _header(kind, data, (start, end), (width, height), (0, 0))
        elif found is None and kind == b"ANMF":
            found = _first_frame(data, start, end, (width, height))
    if found is None:
        msg = "no image"
        raise ValueError(msg)
    found.exif, found.xmp = exif, xmp
    return found


def _first_frame(data: bytes, start: int, end: int, canvas: tuple[int, int]) -> WebpHeader:
    left, top = (2 * int.from_bytes(data[at : at + 3], "little") for at in (start, start + 3))
    for kind, inner, inner_end in _chunks(data, start + _FRAME_HEADER_BYTES, end):
        if kind in _IMAGES:
            return _header(kind, data, (inner, inner_end), canvas, (left, top))
    msg = "a frame without an image"
    raise ValueError(msg)


def _header(
    kind: bytes, data: bytes, bits: tuple[int, int], canvas: tuple[int, int], corner: tuple[int, int]
) -> WebpHeader:
    if bits[1] > len(data):
        msg = "an image without an end"
        raise ValueError(msg)
    frame = (*corner, *_bits_size(kind, data, bits[0]))
    if frame[0] + frame[2] > canvas[0] or frame[1] + frame[3] > canvas[1]:
        msg = "a frame beyond its canvas"
        raise ValueError(msg)
    return WebpHeader(*canvas, frame, bits, kind == b"VP8L")


def _chunks(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each chunk's payload; the last one may end beyond ``end``."""
    for _ in range(MAX_CHUNKS):
        if position + 8 > end:
            return
        kind, size = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, position + 8 + size
        position += 8 + size + (size & 1)
    msg = f"the WebP has more than {MAX_CHUNKS} chunks and is not decoded; save it again"
    raise ImageTooLargeError(msg)
