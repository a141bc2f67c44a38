"""Decoding what was made to cost: scans, chunks, metadata, memory; and what only looks odd."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.engine import decode as decoding
from models.engine import png_chunks
from models.engine.decode import MIB, DecodeLimits, decode, examine
from models.errors import ImageTooLargeError, InvalidImageError, UnavailableError, UnsupportedImageError

PICTURE = Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 56, 3), np.uint8))
START_OF_SCAN = b"\xff\xda"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return ``image`` as bytes of that format, without loss where it can."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}) | options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def inside_png(*chunks: bytes) -> bytes:
    """Return the picture as PNG with ``chunks`` behind its header."""
    data = encode(PICTURE, "PNG")
    return b"".join((data[:33], *chunks, data[33:]))


def segment(marker: int, body: bytes) -> bytes:
    """Return one segment of a JPEG."""
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def inside_jpeg(*segments: bytes, **options: object) -> bytes:
    """Return the picture as JPEG with ``segments`` behind its start."""
    data = encode(PICTURE, "JPEG", **options)
    return b"".join((data[:2], *segments, data[2:]))


def inside_webp(*chunks: tuple[bytes, bytes], flags: int = 0) -> bytes:
    """Return the picture as extended WebP with ``chunks`` before its image."""
    width, height = PICTURE.size
    canvas = bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    image = encode(PICTURE, "WEBP")[12:]
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for kind, data in chunks)
    head = b"VP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(body) + len(image)) + b"WEBP" + head + body + image


def first_scan_repeated(side: int, times: int, **options: object) -> bytes:
    """Return a progressive JPEG of ``side`` x ``side`` pixels whose first scan comes ``times`` times more."""
    data = encode(PICTURE.resize((side, side)), "JPEG", progressive=True, **options)
    start = data.index(START_OF_SCAN)
    end = data.index(b"\xff\xc4", start)
    return data[:start] + data[start:end] * times + data[start:]


def test_more_scans_than_any_encoder_writes_are_refused() -> None:
    """However small the picture is, a scan costs something."""
    assert decode(first_scan_repeated(16, 200)).shape == (16, 16, 3)
    with pytest.raises(ImageTooLargeError, match="scans"):
        decode(first_scan_repeated(16, 600))


def test_scans_times_pixels_are_bounded() -> None:
    """Of a large picture fewer scans are taken: each visits every block."""
    assert examine(first_scan_repeated(2048, 100), DecodeLimits()).memory > 0
    with pytest.raises(ImageTooLargeError, match="too many scans for its size"):
        examine(first_scan_repeated(2048, 499 - 10, subsampling=0, quality=1), DecodeLimits())


def test_scans_hidden_behind_a_comment_are_counted() -> None:
    """A comment that holds an end-of-image marker does not end the count."""
    data = encode(PICTURE.resize((16, 16)), "JPEG", progressive=True)
    start = data.index(START_OF_SCAN)
    end = data.index(b"\xff\xc4", start)
    hidden = data[:end] + segment(0xFE, b"\xff\xd9") + data[start:end] * 600 + data[end:]
    with pytest.raises(ImageTooLargeError, match="scans"):
        decode(hidden)


def test_ten_scans_of_a_large_picture_are_taken() -> None:
    """What every encoder writes for 12 megapixels is no attack, with and without subsampling."""
    picture = Image.new("RGB", (4000, 3000), (90, 120, 30))
    for subsampling in (0, 2):
        data = encode(picture, "JPEG", progressive=True, subsampling=subsampling)
        assert examine(data, DecodeLimits()).memory < 150 * MIB


def test_arithmetic_coding_counts_more() -> None:
    """It takes many times as long as Huffman coding, so that such pictures may be smaller."""
    small, large = (
        encode(Image.new("RGB", (side, side)), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1) for side in (64, 7000)
    )
    assert examine(small, DecodeLimits()).kind == "JPEG"
    with pytest.raises(ImageTooLargeError, match="arithmetically"):
        examine(large, DecodeLimits())


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xCB, 0xCF])
def test_lossless_and_hierarchical_jpegs_are_unsupported(frame: int) -> None:
    """Nobody sends them, and decoders hardly know them."""
    with pytest.raises(UnsupportedImageError, match="baseline"):
        decode(encode(PICTURE, "JPEG").replace(b"\xff\xc0", bytes((0xFF, frame)), 1))


def test_thousands_of_segments() -> None:
    """4000 comments cost milliseconds and are taken, 100 000 are refused."""
    assert decode(inside_jpeg(segment(0xFE, b"x") * 4000)).shape == (40, 56, 3)
    with pytest.raises(ImageTooLargeError, match="segments"):
        decode(inside_jpeg(segment(0xFE, b"x") * 100_000))
    with pytest.raises(ImageTooLargeError, match="tables"):
        decode(inside_jpeg(segment(0xDB, bytes(65) * 900) * 20))
    with pytest.raises(ImageTooLargeError, match="segments"):
        decode(first_scan_repeated(16, 1).replace(START_OF_SCAN, segment(0xFE, b"x") * 5000 + START_OF_SCAN, 2))


def test_thousands_of_chunks() -> None:
    """60 000 chunks are taken, 100 000 refused, in PNG and WebP."""
    assert decode(inside_png(chunk(b"tEXt", b"a\0b") * 60_000)).shape == (40, 56, 3)
    with pytest.raises(ImageTooLargeError, match="chunks"):
        decode(inside_png(chunk(b"tEXt", b"a\0b") * 100_000))
    with pytest.raises(ImageTooLargeError, match="chunks"):
        decode(inside_png(chunk(b"IDAT", b"") * 100_000))
    assert decode(inside_webp(*[(b"JUNK", b"x")] * 60_000)).shape == (40, 56, 3)
    with pytest.raises(ImageTooLargeError, match="chunks"):
        decode(inside_webp(*[(b"JUNK", b"")] * 100_000))


def test_profiles_are_never_unfolded() -> None:
    """10 000 colour profiles of 1 MiB each would take a general reader ten seconds."""
    packed = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MIB), 9))
    assert np.array_equal(decode(inside_png(packed * 10_000)), np.asarray(PICTURE))


def test_entries_that_all_point_at_the_same_bytes_are_not_followed() -> None:
    """65 535 EXIF entries of 4 MB each cost what one costs, and the orientation among them counts."""
    entries = b"".join(struct.pack("<HHII", tag, 7, 4_000_000, 8) for tag in range(1, 0x0112))
    entries += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    entries += b"".join(struct.pack("<HHII", tag, 7, 4_000_000, 8) for tag in range(0x0113, 65_535))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_534) + entries + bytes(4_000_000)
    assert decode(inside_png(chunk(b"eXIf", exif))).shape == (56, 40, 3)
    assert decode(inside_webp((b"EXIF", exif), flags=8)).shape == (56, 40, 3)


def test_orientation_in_every_place() -> None:
    """XMP counts where EXIF is silent; EXIF counts before it; ImageMagick's old text counts as EXIF."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    plain = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0)
    turned = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0)
    old = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      26\n" + turned.hex().encode() + b"\n")
    upright, sideways = (40, 56, 3), (56, 40, 3)
    assert decode(inside_png(chunk(b"iTXt", plain))).shape == sideways
    assert decode(inside_png(chunk(b"iTXt", packed))).shape == sideways
    assert decode(inside_png(chunk(b"iTXt", plain), chunk(b"eXIf", exif))).shape == upright
    assert decode(inside_png(chunk(b"zTXt", old))).shape == sideways
    assert decode(inside_jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp))).shape == sideways
    assert decode(inside_webp((b"XMP ", xmp), flags=4)).shape == sideways
    assert decode(inside_webp((b"EXIF", b"Exif\0\0" + turned), flags=8)).shape == sideways


def test_memory_is_known_before_decoding() -> None:
    """What would take more than the limit is refused from the header; a baseline JPEG takes the least."""
    flat = Image.new("L", (7_000, 7_000))
    assert examine(encode(flat, "JPEG"), DecodeLimits()).memory == 3 * 7_000 * 7_000
    wide = inside_png()[:16] + struct.pack(">II", 7_000, 7_000) + inside_png()[24:]
    with pytest.raises(ImageTooLargeError, match=r"the PNG takes 32\d MiB of memory to decode, the limit is 280"):
        examine(wide, DecodeLimits())
    assert examine(wide, DecodeLimits(max_memory=400 * MIB)).memory > 300 * MIB
    with pytest.raises(ImageTooLargeError, match="the JPEG takes"):
        examine(encode(flat.convert("RGB"), "JPEG", progressive=True, subsampling=0), DecodeLimits())


def test_sixteen_bits_of_a_large_picture_are_refused() -> None:
    """Twice the bytes take twice the time, which the memory of the result does not show."""
    plain = inside_png()

    def announce(depth: int) -> bytes:
        return plain[:16] + struct.pack(">IIB", 6_000, 6_000, depth) + plain[25:]

    assert examine(announce(8), DecodeLimits()).memory < 280 * MIB
    with pytest.raises(ImageTooLargeError, match="the PNG unfolds to 205 MiB, the limit is 168; send it with 8 bits"):
        examine(announce(16), DecodeLimits())


def test_what_is_behind_the_picture_is_not_unfolded() -> None:
    """Image data that go on for 100 MB after the last row cost nothing, and the picture counts."""
    rows = b"\0" + bytes((10, 20, 30)) * 16
    packed = zlib.compress(rows * 16 + bytes(100 * MIB), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    found = decode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    assert (found == (10, 20, 30)).all()


def test_a_frame_that_does_not_fill_its_canvas() -> None:
    """The rest of the canvas is black; a frame beyond it is damage."""
    data = encode(PICTURE, "WEBP")[12:]
    frame = (
        (2).to_bytes(3, "little") + (3).to_bytes(3, "little") + (55).to_bytes(3, "little") + (39).to_bytes(3, "little")
    )
    anmf = frame + bytes(4) + data

    def animation(width: int, height: int) -> bytes:
        canvas = b"\2\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
        body += b"ANMF" + struct.pack("<I", len(anmf)) + anmf
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body

    found = decode(animation(100, 80))
    assert found.shape == (80, 100, 3)
    assert np.array_equal(found[6:46, 4:60], np.asarray(PICTURE))
    assert not found[:6].any()
    assert not found[:, 60:].any()
    with pytest.raises(InvalidImageError, match="damaged"):
        decode(animation(56, 40))


def test_large_pictures_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strips of a picture are the picture, in every way Pillow holds it."""
    pictures = [encode(PICTURE.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    pictures += [encode(PICTURE.convert("CMYK"), "JPEG")]
    whole = [decode(data) for data in pictures]
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 7 * 56)
    for data, expected in zip(pictures, whole, strict=True):
        assert np.array_equal(decode(data), expected)


def test_no_memory_is_no_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told to come back, not that its image is damaged."""

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    data = encode(PICTURE, "JPEG")
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", refuse)
    with pytest.raises(UnavailableError, match="no memory"):
        decode(data)


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0", b""]
)
@given(tail=st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_an_invalid_image(head: bytes, tail: bytes) -> None:
    """Nothing else ever comes out of a decoder."""
    try:
        pixels = decode(head + tail, DecodeLimits(max_pixels=100_000))
    except InvalidImageError:
        return
    assert pixels.ndim == 3


_IMPORTED = """
import io, sys
import numpy as np
from PIL import Image
from models.engine.decode import decode
sys.path.insert(0, sys.argv[1])

def answers():
    found = []
    picture = Image.fromarray(np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind, exif=exif)
        found.append(decode(buffer.getvalue()).tobytes())
    for junk in (b"junk", b"\\0\\0\\0\\x18ftypheic" + bytes(64), b"\\xff\\xd8\\xff\\xe0junk"):
        try:
            decode(junk)
        except Exception as error:
            found.append(repr(error))
    return found

before = answers()
opener = Image.open
import ultralytics.utils.patches
assert Image.open is not opener, "this version patches nothing: the test shows nothing any more"
import subprocess, urllib.request, socket
def trap(*a, **k):
    raise SystemExit("something was installed or fetched")
subprocess.Popen = subprocess.run = subprocess.check_output = socket.create_connection = trap
assert answers() == before
print("same")
"""


def test_importing_ultralytics_changes_nothing() -> None:
    """In a process that has imported it, images decode to the same bits and garbage gives the same errors."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, "."], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("same")


def test_only_one_text_of_a_kind_is_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand packed profiles and XMP texts that say nothing cost two inflations, whatever becomes of them."""
    calls: list[int] = []
    inflate = png_chunks._inflate
    monkeypatch.setattr(png_chunks, "_inflate", lambda packed: calls.append(len(packed)) or inflate(packed))
    lines = zlib.compress(b"\n" * 1024 * 1024)
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + lines)
    packet = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + lines[:-8])
    assert decode(inside_png(*[profile, packet] * 1000)).shape == (40, 56, 3)
    assert len(calls) == 2


def test_a_second_header_is_refused() -> None:
    """A decoder would obey the second header, and what was checked is the first."""
    data = encode(PICTURE, "PNG")
    deeper = chunk(b"IHDR", data[16:24] + bytes((16, 6, 0, 0, 0)))
    with pytest.raises(InvalidImageError):
        decode(inside_png(deeper))
