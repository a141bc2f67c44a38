"""What clients get wrong costs them a clear 4xx and the service nothing."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from running import Service


def _huge_png() -> bytes:
    """Return a valid 20 000 x 20 000 one-bit PNG of about 50 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(20_000 * 2_501), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _gif() -> bytes:
    """Return a valid GIF."""
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


CASES = {
    "empty body": (b"", "/v1/detect", 400, "invalid_image"),
    "text": (b"this is no picture", "/v1/detect", 415, "unsupported_image"),
    "truncated JPEG": (None, "/v1/detect", 400, "invalid_image"),
    "20 000 x 20 000 PNG": (_huge_png(), "/v1/detect", 413, "image_too_large"),
    "GIF": (_gif(), "/v1/detect", 415, "unsupported_image"),
    "unknown model": (None, "/v1/models/nobody/detect", 404, "unknown_model"),
    "conf=7": (None, "/v1/detect?conf=7", 422, "invalid_option"),
    "25 MB body": (bytes(25 * 1024 * 1024), "/v1/detect", 413, "body_too_large"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_bad_input_is_a_4xx_of_its_own(service: Service, case: str) -> None:
    """Each mistake has its own status and code as problem+json, and the next good request is unaffected."""
    body, path, status, code = CASES[case]
    if body is None:
        body = service.tray[: len(service.tray) // 2] if case == "truncated JPEG" else service.tray
    answer = httpx.post(service.url + path, content=body, headers={"Content-Type": "image/jpeg"}, timeout=30)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json()["code"] == code
    assert answer.json()["status"] == status
    good = httpx.post(service.url + "/v1/detect", content=service.tray, headers={"Content-Type": "image/jpeg"})
    assert good.status_code == 200
    assert good.json()["images"][0]["results"]
