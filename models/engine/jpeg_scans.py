"""What a JPEG's markers say before any of it is decoded: size, orientation, and the work that its scans will be.

Markers are those of ITU-T T.81 Annex B. The walk goes from segment to segment, and past compressed data with one
search for the next marker, so that it costs microseconds for a photograph and milliseconds for the worst file.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from models.engine.orientation import EXIF_PREFIX
from models.errors import ImageTooLargeError, UnsupportedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SEGMENTS: Final = 4096
"""Most markers with a segment; 20 MB of full segments are 320."""
MAX_TABLE_BYTES: Final = 1024 * 1024
"""Most bytes of tables before the first scan; the largest legal set has some 4000."""
MAX_SCANS: Final = 500
MAX_WORK: Final = 48_000_000
"""Most work of an image in several scans or arithmetic coding, in visits of one scan to one block of 8 x 8 samples.

The ten scans that encoders write visit the blocks of 64 megapixels 14 million times without subsampling, 7 million
times with it. A visit takes up to 35 ns, and reading a byte as long as two of them.
"""
HUFFMAN_BYTE: Final = 2
ARITHMETIC_VISIT: Final = 32
ARITHMETIC_BYTE: Final = 16
_XMP_PREFIX: Final = b"http://ns.adobe.com/xap/1.0/\0"

# 00 is a stuffed byte, D0 to D7 are restarts, and FF pads: none of them begins anything.
_NEXT: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_TEM, _EOI, _SOS = 0x01, 0xD9, 0xDA
_END: Final = b"\xff\xd9"
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1, 0xC9}), frozenset({0xC2, 0xCA})
_ARITHMETIC: Final = frozenset({0xC9, 0xCA})
_TABLES: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_WITH_SEGMENT: Final = _FRAMES | _TABLES | {0xDC, 0xFE} | set(range(0xE0, 0xF0))
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_KEPT: Final = _FRAMES | _TABLES | {_APP0, _APP14}


@dataclass(slots=True)
class JpegHeader:
    """What a JPEG announces.

    width, height: pixels. components: 1, 3 or 4. blocks_of: blocks of 8 x 8 samples, by the component's id.
    progressive, arithmetic: the coding. kept: (start, end) of the segments that decoding needs. first_scan: where the
    first SOS marker stands.
    """

    width: int
    height: int
    components: int
    blocks_of: dict[int, int]
    progressive: bool
    arithmetic: bool
    several_scans: bool = False
    first_scan: int = 0
    exif: bytes | None = None
    xmp: bytes | None = None
    kept: list[tuple[int, int]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """Return how many blocks the image has."""
        return sum(self.blocks_of.values())

    def without_metadata(self, data: bytes) -> bytes:
        """Return ``data`` without the segments, and bytes between segments, that do not change a pixel."""
        return b"".join([b"\xff\xd8", *(data[start:end] for start, end in self.kept), data[self.first_scan :]])


def read_jpeg(data: bytes) -> JpegHeader:
    """Return what the markers of ``data``, which begins with SOI, say up to the first scan.

    Raises:
        ImageTooLargeError: more segments or tables than any encoder writes.
        UnsupportedImageError: lossless, hierarchical or not of 8 bits.
        ValueError, IndexError, struct.error: damaged.

    """
    header: JpegHeader | None = None
    exif: list[bytes] = []
    xmp: bytes | None = None
    kept: list[tuple[int, int]] = []
    for marker, start, end in _segments(data):
        if marker == _SOS:
            break
        body = data[start + 4 : end]
        if marker in _FRAMES:
            if header is not None:
                msg = "two frames"
                raise ValueError(msg)
            header = _read_frame(marker, body)
        elif marker == _APP1 and body.startswith(EXIF_PREFIX):
            exif.append(body[len(EXIF_PREFIX) :])
        elif marker == _APP1 and body.startswith(_XMP_PREFIX):
            xmp = body
        if marker in _KEPT:
            kept.append((start, end))
    if header is None:
        msg = "a scan without a frame"
        raise ValueError(msg)
    if sum(end - start for start, end in kept) > MAX_TABLE_BYTES:
        _refuse(f"has more than {MAX_TABLE_BYTES} bytes of tables")
    header.exif, header.xmp, header.kept, header.first_scan = b"".join(exif) or None, xmp, kept, start
    header.several_scans = header.progressive or data[start + 4] < header.components
    return header


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, where it starts, where its segment ends) from SOI to the first SOS, which ends nowhere yet."""
    position = 2
    for _ in range(MAX_SEGMENTS):
        found = _NEXT.search(data, position)
        if found is None:
            break
        marker, position = data[found.end() - 1], found.end()
        if marker == _SOS:
            yield marker, found.start(), position
            return
        if marker != _TEM:
            position = _segment_end(data, position, marker)
            yield marker, found.start(), position
    else:
        _refuse(f"has more than {MAX_SEGMENTS} segments")
    msg = "no scan"
    raise ValueError(msg)


def _segment_end(data: bytes, position: int, marker: int) -> int:
    if marker not in _WITH_SEGMENT:
        msg = "a marker that cannot stand here"
        raise ValueError(msg)
    (length,) = struct.unpack_from(">H", data, position)
    if length < 2 or position + length > len(data):  # noqa: PLR2004 - the length counts itself
        msg = "a segment without an end"
        raise ValueError(msg)
    return int(position + length)


def _read_frame(marker: int, body: bytes) -> JpegHeader:
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if marker not in _SEQUENTIAL | _PROGRESSIVE or precision != 8:  # noqa: PLR2004 - bits a sample
        msg = "the JPEG is lossless, hierarchical or not of 8 bits a channel; save it again as a baseline JPEG"
        raise UnsupportedImageError(msg)
    parts = [struct.unpack_from("BB", body, 6 + 3 * index) for index in range(count)]
    sampling = [(name, factors >> 4, factors & 15) for name, factors in parts]
    if count not in {1, 3, 4} or not all(1 <= h <= 4 and 1 <= v <= 4 for _, h, v in sampling):  # noqa: PLR2004 - T.81
        msg = "components that no JPEG has"
        raise ValueError(msg)
    across = -(-width // (8 * max(h for _, h, _ in sampling)))
    down = -(-height // (8 * max(v for _, _, v in sampling)))
    blocks: dict[int, int] = {}
    for name, h, v in sampling:
        blocks[name] = blocks.get(name, 0) + across * down * h * v
    return JpegHeader(width, height, count, blocks, marker in _PROGRESSIVE, marker in _ARITHMETIC)


def check_work(data: bytes, header: JpegHeader) -> None:
    """Look at all scans of ``data`` without decoding them.

    Raises ImageTooLargeError where decoding would take too long, ValueError where there is no end of the image.
    """
    if header.several_scans or header.arithmetic:
        _check_scans(data, header)
    elif data.rfind(_END, header.first_scan) < 0:
        _no_end()


def _check_scans(data: bytes, header: JpegHeader) -> None:
    visit, byte = (ARITHMETIC_VISIT, ARITHMETIC_BYTE) if header.arithmetic else (1, HUFFMAN_BYTE)
    position, scans, work = header.first_scan, 0, byte * (len(data) - header.first_scan)
    for _ in range(MAX_SEGMENTS):
        found = _NEXT.search(data, position)
        if found is None:
            break
        marker, position = data[found.end() - 1], found.end()
        if marker == _SOS:
            scans += 1
            work += visit * _visited(data, position, header)
            if scans > MAX_SCANS or work > MAX_WORK:
                _refuse("is coded in a way that takes too long: in too many scans for its size, or arithmetically,")
        elif marker == _EOI:
            return
        elif marker == _TEM:
            continue
        elif marker not in _WITH_SEGMENT:
            break  # every decoder stops here
        # A length below 2 stops decoders too; here it must only not stand still.
        position += max(int.from_bytes(data[position : position + 2]), 2)
    else:
        _refuse(f"has more than {MAX_SEGMENTS} segments")
    _no_end()


def _no_end() -> NoReturn:
    msg = "no end of the image"
    raise ValueError(msg)


def _visited(data: bytes, position: int, header: JpegHeader) -> int:
    """Return the blocks of the components that the scan names whose header is at ``position``."""
    count = data[position + 2] if position + 2 < len(data) else 0
    names = data[position + 3 : position + 3 + 2 * count : 2]
    if not names or not all(name in header.blocks_of for name in names):
        return header.blocks
    return sum(header.blocks_of[name] for name in names)


def _refuse(what: str) -> NoReturn:
    msg = f"the JPEG {what} and is not decoded; save it again as a baseline JPEG"
    raise ImageTooLargeError(msg)
