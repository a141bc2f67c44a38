"""Coverage-guided fuzzing of whatever reads a client's bytes: images, bodies, queries and options.

    pip install atheris
    python tests/fuzz/decode.py tests/fuzz/seeds -max_total_time=600

The first byte of an input chooses the reader, the rest goes there. Anything but an answer or an error that clients get
as a 4xx ends the run, as does an input that takes longer than 2 s; libFuzzer writes it to a file, which then belongs
among the seeds. ``--write-seeds`` makes the seeds anew, and without atheris ``--seeds-only`` runs them once.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

atheris: Any = None
with contextlib.suppress(ImportError):  # it is not among the project's dependencies
    import atheris

_FOLLOWED: Final = ["models.engine.*", "serve.protocols.*", "python_multipart.*", "PIL.PngImagePlugin", "urllib.parse"]
with atheris.instrument_imports(include=_FOLLOWED) if atheris else contextlib.nullcontext():
    from models.engine.decode import DecodeLimits, decode
    from models.errors import InvalidImageError, RequestError
    from serve.protocols.native_body import MULTIPART, Parsed, parse_body
    from serve.protocols.native_options import parse_options, parse_query

SEEDS: Final = Path(__file__).with_name("seeds")
LIMITS: Final = DecodeLimits(max_bytes=1024 * 1024, max_pixels=4_000_000)
MOST_S: Final = 2.0
TYPES: Final = ("image/jpeg", "application/json", f"{MULTIPART}; boundary=x", "text/plain")
NAMES: Final = ("dog", "cat", "1,2")
LOOP: Final = asyncio.new_event_loop()


def decode_image(data: bytes) -> None:
    """Decode; the answer is RGB in limits."""
    try:
        pixels = decode(data, LIMITS)
    except InvalidImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels
    assert pixels.flags.c_contiguous


def read_body(data: bytes) -> None:
    """Parse a body under the media type that its first byte names, then the options that it carries."""
    kind = TYPES[data[0] % len(TYPES)] if data else TYPES[0]
    try:
        parsed = LOOP.run_until_complete(parse_body(data[1:], kind, max_images=4))
        assert isinstance(parsed, Parsed)
        assert 0 < len(parsed.images) <= 4
        parse_options(parsed.options).resolve(NAMES)
    except RequestError:
        return


def read_content_type(data: bytes) -> None:
    """Parse a small body under any media type, as Starlette hands over a header's bytes."""
    try:
        LOOP.run_until_complete(parse_body(b'{"image": "AAAA"}', data.decode("latin-1"), max_images=4))
    except RequestError:
        return


def read_query(data: bytes) -> None:
    """Parse a query and resolve its options."""
    try:
        parse_options(parse_query(data)).resolve(NAMES)
    except RequestError:
        return


READERS: Final = (decode_image, read_body, read_query, read_content_type)


def try_one(data: bytes) -> None:
    """Hand ``data`` to the reader that its first byte names."""
    if not data:
        return
    begun = time.process_time()
    READERS[data[0] % len(READERS)](data[1:])
    taken = time.process_time() - begun
    assert taken < MOST_S, f"{taken:.1f} s"


def write_seeds() -> None:
    """Write small files of every kind, and bodies and queries."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, kind, mode, options in (
        ("baseline", "JPEG", "RGB", {"exif": exif}),
        ("progressive", "JPEG", "RGB", {"progressive": True, "quality": 50}),
        ("cmyk", "JPEG", "CMYK", {"quality": 50}),
        ("grey", "JPEG", "L", {"restart_marker_blocks": 1}),
        ("rgb", "PNG", "RGB", {"exif": exif}),
        ("palette", "PNG", "P", {"transparency": 0}),
        ("alpha", "PNG", "RGBA", {}),
        ("bits", "PNG", "1", {}),
        ("sixteen", "PNG", "I;16", {}),
        ("lossless", "WEBP", "RGBA", {"lossless": True, "exif": exif}),
        ("lossy", "WEBP", "RGB", {"quality": 30}),
        ("animation", "WEBP", "RGB", {"save_all": True, "append_images": [picture.rotate(90)]}),
        ("animation", "PNG", "RGB", {"save_all": True, "append_images": [picture.rotate(180)]}),
    ):
        image = Image.new(mode, (16, 16), 4000) if mode == "I;16" else picture.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        (SEEDS / f"{name}.{kind.lower()}").write_bytes(b"\0" + buffer.getvalue())
    texts = {
        "json": b'\1\1{"image": "data:image/png;base64,AAAA", "conf": 0.5, "classes": ["dog", 1]}',
        "json-several": b'\1\1{"images": ["AA==", "AAAA"], "iou": null}',
        "form": b'\1\2--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nAAA\r\n'
        b'--x\r\nContent-Disposition: form-data; name="conf"\r\n\r\n0.5\r\n--x--\r\n',
        "query": b"\2conf=0.5&iou=.7&max_det=3&classes=dog,1&normalize=true&decimals=2",
        "query-escapes": b"\2classes=%64og&classes=1%2C2&conf=1e-1",
        "content-type": b'\3multipart/form-data; boundary="x y"; charset=utf-8',
    }
    for name, data in texts.items():
        (SEEDS / f"{name}.txt").write_bytes(data)


def main() -> None:
    """Fuzz, or only run or write the seeds."""
    warnings.simplefilter("ignore")
    if "--write-seeds" in sys.argv:
        write_seeds()
    elif "--seeds-only" in sys.argv:
        for path in sorted(SEEDS.iterdir()):
            try_one(path.read_bytes())
    else:
        atheris.Setup(sys.argv, try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
