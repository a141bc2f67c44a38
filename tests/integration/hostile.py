"""Odd and hostile images, made here: bombs, polyglots, truncations, endless scans, every mode and orientation.

    python tests/integration/hostile.py FOLDER

writes them as files.
"""

from __future__ import annotations

import functools
import io
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP")
SIGNATURE = b"\x89PNG\r\n\x1a\n"
GOOD = frozenset({200})
REFUSED = frozenset({400, 413, 415})
EITHER = GOOD | REFUSED
ORIENTATION = 0x0112
UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is stored under each value of the tag."""


@dataclass(frozen=True, slots=True)
class Case:
    """One file: its name, its bytes, and the statuses that a service may answer."""

    name: str
    data: bytes
    statuses: frozenset[int]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return ``image`` as a file of that format; WebP without loss unless told otherwise."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}) | options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    """Return a PNG of already filtered ``rows``, with further chunks before its data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"".join((SIGNATURE, head, *extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")))


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP of these chunks."""
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def smooth(height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    """Return a picture with another colour in each corner."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack((255 * x, 255 * y, 255 * (1 - x) * (1 - y)), axis=2).astype(np.uint8)


@functools.cache
def photograph(height: int = 3000, width: int = 4000) -> Image.Image:
    """Return a picture of about as much detail as a photograph."""
    random = np.random.default_rng(7)
    coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def oriented(upright: Image.Image) -> Iterator[tuple[str, int, bytes]]:
    """Yield (format, tag, file) of ``upright`` stored under each value of the tag."""
    for kind in FORMATS:
        for tag, stored in UNDONE.items():
            exif = Image.Exif()
            exif[ORIENTATION] = tag
            picture = upright if stored is None else upright.transpose(stored)
            options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
            yield kind, tag, encode(picture, kind, exif=exif, **options)


def cases() -> Iterator[Case]:
    """Yield every case."""
    picture = Image.fromarray(smooth())
    yield from _large()
    yield from _bombs(picture)
    yield from _scans(picture)
    yield from _metadata(picture)
    yield from _polyglots(picture)
    yield from _truncated(picture)
    yield from _modes(picture)
    yield from _animations(picture)
    for kind, tag, data in oriented(picture):
        yield Case(f"orientation-{tag}.{kind.lower()}", data, GOOD)
    for kind in FORMATS:
        options = (
            {"quality": 85} if kind == "JPEG" else {"lossless": False} if kind == "WEBP" else {"compress_level": 1}
        )
        yield Case(f"12-megapixels.{kind.lower()}", encode(photograph(), kind, **options), GOOD)
    yield Case("12-megapixels-progressive.jpeg", encode(photograph(), "JPEG", progressive=True, subsampling=0), GOOD)
    yield Case("12-megapixels-cmyk.jpeg", encode(photograph().convert("CMYK"), "JPEG"), GOOD)


def _large() -> Iterator[Case]:
    for width, height in ((9_400, 9_400), (13_000, 13_000), (20_000, 20_000), (65_500, 1), (1, 65_500)):
        rows = bytes(height * (1 + -(-width // 8)))
        yield Case(f"{width}x{height}.png", png(width, height, rows, depth=1, colour=0), REFUSED)
    for width, height in ((65_500, 1), (1, 65_500)):
        yield Case(f"{width}x{height}.jpeg", encode(Image.new("RGB", (width, height)), "JPEG"), REFUSED)
    for width, height in ((16_384, 1), (1, 16_384)):
        yield Case(f"{width}x{height}.png", encode(Image.new("RGB", (width, height)), "PNG"), GOOD)
        yield Case(f"{width}x{height}.jpeg", encode(Image.new("RGB", (width, height)), "JPEG"), GOOD)
    for width, height in ((16_383, 1), (1, 16_383)):
        yield Case(f"{width}x{height}.webp", encode(Image.new("RGB", (width, height)), "WEBP"), GOOD)
    canvas = bytes(4) + (16_383).to_bytes(3, "little") * 2
    yield Case("16384x16384-canvas.webp", webp((b"VP8X", canvas)), REFUSED)
    small = encode(Image.new("RGB", (8, 8)), "WEBP")
    yield Case("canvas-and-8x8-frame.webp", webp((b"VP8X", canvas), (b"VP8L", small[20:])), REFUSED)
    yield Case("1x1.png", encode(Image.new("RGB", (1, 1)), "PNG"), GOOD)
    yield Case("0x8.png", png(0, 8, bytes(8)), REFUSED)
    yield Case("8-gigapixels.png", png(2**31 - 1, 4, bytes(8)), REFUSED)


def _bombs(picture: Image.Image) -> Iterator[Case]:
    plain = encode(picture, "PNG")
    packed = zlib.compress(bytes(200 * 1024 * 1024), 9)
    little = zlib.compress(bytes(1024 * 1024), 9)
    head, rest = plain[:33], plain[33:]
    yield Case("bomb-iccp.png", head + chunk(b"iCCP", b"a\0\0" + packed) + rest, EITHER)
    yield Case("bomb-ztxt.png", head + chunk(b"zTXt", b"a\0\0" + packed) + rest, EITHER)
    yield Case("bomb-itxt-xmp.png", head + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed) + rest, EITHER)
    yield Case("bomb-raw-exif.png", head + chunk(b"zTXt", b"Raw profile type exif\0\0" + packed) + rest, EITHER)
    yield Case("10000-iccp.png", head + chunk(b"iCCP", b"a\0\0" + little) * 10_000 + rest, EITHER)
    yield Case("bomb-behind-16x16.png", png(16, 16, bytes(200 * 1024 * 1024)), EITHER)
    yield Case("60000-texts.png", head + chunk(b"tEXt", b"a\0b") * 60_000 + rest, EITHER)
    yield Case("1000000-texts.png", head + chunk(b"tEXt", b"a\0b") * 1_000_000 + rest, REFUSED)
    yield Case("1000000-empty-data.png", head + chunk(b"IDAT", b"") * 1_000_000 + rest, REFUSED)
    data = zlib.compress(bytes(64 * (1 + 3 * 64)), 0)
    single = b"".join(chunk(b"IDAT", data[at : at + 1]) for at in range(len(data)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    yield Case("single-byte-data.png", SIGNATURE + header + single + chunk(b"IEND", b""), GOOD)
    row = b"\4" + bytes(4 * 7_900)
    yield Case("62-megapixels-paeth.png", png(7_900, 7_900, row * 7_900, colour=6), EITHER)
    frame = encode(picture, "WEBP")[20:]
    canvas = bytes(4) + (picture.width - 1).to_bytes(3, "little") + (picture.height - 1).to_bytes(3, "little")
    anmf = bytes(6) + canvas[4:] + bytes(4) + b"VP8L" + struct.pack("<I", len(frame)) + frame
    frames = [(b"ANMF", anmf)] + [(b"ANMF", bytes(16))] * 50_000
    yield Case("50000-frames.webp", webp((b"VP8X", b"\2" + canvas[1:]), (b"ANIM", bytes(6)), *frames), EITHER)
    chunks = [(b"JUNK", b"")] * 1_000_000
    yield Case("1000000-chunks.webp", webp((b"VP8X", canvas), *chunks, (b"VP8L", frame)), REFUSED)
    yield Case("bomb-iccp.webp", webp((b"VP8X", b"\x20" + canvas[1:]), (b"ICCP", packed), (b"VP8L", frame)), EITHER)


def _scans(picture: Image.Image) -> Iterator[Case]:
    for side, name in ((64, "small"), (1024, "1-megapixel"), (7_900, "62-megapixels")):
        data = encode(picture.resize((side, side)), "JPEG", progressive=True)
        start = data.index(b"\xff\xda")
        end = data.index(b"\xff\xda", start + 2)
        end = max(start + 20, data.rindex(b"\xff\xc4", start, end)) if b"\xff\xc4" in data[start:end] else end
        for times in (10, 400, 5_000):
            bomb = data[:start] + data[start:end] * times + data[start:]
            if len(bomb) < 19_000_000:
                yield Case(f"{times}-scans-{name}.jpeg", bomb, EITHER if times < 5_000 else REFUSED)
    plain = encode(picture, "JPEG")
    yield Case("1000000-comments.jpeg", plain[:2] + b"\xff\xfe\0\2" * 1_000_000 + plain[2:], REFUSED)
    yield Case("4000-comments.jpeg", plain[:2] + b"\xff\xfe\0\2" * 4_000 + plain[2:], GOOD)
    yield Case("10-mb-of-padding.jpeg", plain[:2] + b"\xff" * 10_000_000 + plain[2:], EITHER)
    yield Case("10-mb-of-zeros.jpeg", plain[:2] + bytes(10_000_000) + plain[2:], EITHER)
    yield Case("10-mb-of-stuffing.jpeg", plain[:-2] + b"\xff\0" * 5_000_000 + plain[-2:], EITHER)


def _metadata(picture: Image.Image) -> Iterator[Case]:
    entries = b"".join(struct.pack("<HHII", tag, 7, 18_000_000, 8) for tag in range(65_535))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entries + bytes(18_000_000)
    plain = encode(picture, "PNG")
    yield Case("bomb-exif.png", plain[:33] + chunk(b"eXIf", exif) + plain[33:], GOOD)
    jpeg = encode(picture, "JPEG")
    piece = b"Exif\0\0" + bytes(10)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(piece)) + piece
    yield Case("1000000-exif-blocks.jpeg", jpeg[:2] + segment * 800_000 + jpeg[2:], REFUSED)
    yield Case("4000-exif-blocks.jpeg", jpeg[:2] + segment * 4_000 + jpeg[2:], GOOD)
    text = b"<x tiff:Orientation=" * 900_000
    yield Case("18-mb-xmp.png", plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text) + plain[33:], GOOD)


def _polyglots(picture: Image.Image) -> Iterator[Case]:
    jpeg, flat, moved = encode(picture, "JPEG"), encode(picture, "PNG"), encode(picture, "WEBP")
    gif = encode(picture.convert("P"), "GIF")
    archive = b"PK\3\4" + bytes(26) + b"x" + b"PK\1\2" + bytes(42) + b"PK\5\6" + bytes(18)
    page = b"<html><script>alert(1)</script></html>"
    yield Case("jpeg-and-zip.jpeg", jpeg + archive, GOOD)
    yield Case(
        "jpeg-with-page-in-comment.jpeg",
        jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(page)) + page + jpeg[2:],
        GOOD,
    )
    yield Case("png-and-page.png", flat + page, GOOD)
    yield Case("png-with-page-inside.png", flat[:33] + chunk(b"tEXt", b"Comment\0" + page) + flat[33:], GOOD)
    yield Case("webp-and-zip.webp", moved + archive, GOOD)
    yield Case("gif-and-jpeg.gif", gif + jpeg, REFUSED)
    yield Case("gif-header-jpeg.jpg", b"GIF89a/*" + jpeg, REFUSED)
    yield Case("pdf-and-jpeg.jpg", b"%PDF-1.7\n" + jpeg, REFUSED)
    yield Case("jpeg-then-png.jpg", jpeg + flat, GOOD)
    yield Case("svg.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', REFUSED)
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "DDS", "SGI", "IM", "MSP", "XBM", "EPS", "PDF"):
        mode = "1" if kind in {"MSP", "XBM"} else "RGB"
        yield Case(f"other.{kind.lower()}", encode(picture.convert(mode), kind), REFUSED)


def _truncated(picture: Image.Image) -> Iterator[Case]:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8))
    whole = {
        "baseline.jpeg": encode(noise, "JPEG"),
        "progressive.jpeg": encode(noise, "JPEG", progressive=True),
        "plain.png": encode(noise, "PNG"),
        "lossless.webp": encode(noise, "WEBP"),
        "lossy.webp": encode(noise, "WEBP", lossless=False),
        "animated.png": encode(noise, "PNG", save_all=True, append_images=[picture]),
        "animated.webp": encode(noise, "WEBP", save_all=True, append_images=[picture]),
    }
    for name, data in whole.items():
        # The first frame of an animation may be complete.
        statuses = EITHER if name.startswith("animated") else REFUSED
        for tenth in range(10):
            yield Case(f"truncated-{10 * tenth}-percent-{name}", data[: len(data) * tenth // 10], statuses)


def _modes(picture: Image.Image) -> Iterator[Case]:
    for mode in (
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
        "I",
        "F",
        "La",
        "RGBa",
        "I;16",
        "I;16B",
    ):
        image = _in_mode(picture, mode)
        for kind in (*FORMATS, "TIFF"):
            try:
                data = encode(image, kind)
            except (OSError, ValueError, KeyError):  # that format has no such mode
                continue
            yield Case(f"mode-{mode.replace(';', '-')}.{kind.lower()}", data, REFUSED if kind == "TIFF" else GOOD)
    noise = np.random.default_rng(5).integers(0, 256, (64, 64 * 8), np.uint8)
    for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = b"".join(b"\0" + row[: 64 * channels * 2].tobytes() for row in noise)
        yield Case(f"16-bit-{channels}-channels.png", png(64, 64, rows, depth=16, colour=colour), GOOD)
    yield Case("palette-missing.png", png(64, 64, bytes(64 * 65), colour=3), EITHER)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    through = {"PA": "P", "La": "LA", "RGBa": "RGBA", "I;16": "I", "I;16B": "I"}
    if mode in {"I;16", "I;16B"}:
        return Image.frombytes(mode, (64, 64), bytes(64 * 64 * 2))
    if mode == "LAB":
        return Image.frombytes(mode, (64, 64), bytes(64 * 64 * 3))
    return picture.convert(through[mode]).convert(mode) if mode in through else picture.convert(mode)


def _animations(picture: Image.Image) -> Iterator[Case]:
    later = [Image.new("RGB", picture.size, (n, n, n)) for n in range(20)]
    for kind in ("PNG", "WEBP"):
        yield Case(f"animation.{kind.lower()}", encode(picture, kind, save_all=True, append_images=later), GOOD)
    multi = encode(picture, "JPEG")
    yield Case("several-pictures.mpo", multi + multi, GOOD)


def main() -> None:
    """Write every case as a file."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (folder / case.name).write_bytes(case.data)


if __name__ == "__main__":
    main()
