"""Request bytes, built once before a run: how each kind of server wants a picture in HTTP/1.1."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_BOUNDARY: Final = "steelyard-load-boundary"

Framing = tuple[dict[str, str], bytes]
"""Headers and body of one request."""


def raw(picture: bytes) -> Framing:
    """Return the picture's own bytes as the body."""
    return {"Content-Type": "image/jpeg"}, picture


def multipart(picture: bytes) -> Framing:
    """Return a form with the picture in the field ``file`` (RFC 7578)."""
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def triton(picture: bytes) -> Framing:
    """Return the picture as one BYTES tensor ``image`` of shape (1, 1).

    Open Inference Protocol with the binary tensor data extension, as Triton's HTTP endpoint takes it: JSON, then the
    element behind its length in 4 bytes, little endian.
    """
    element = struct.pack("<I", len(picture)) + picture
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(element)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return headers, head + element


def open_inference(picture: bytes) -> Framing:
    """Return the picture as base64 in one BYTES tensor ``image`` of an Open Inference Protocol request in JSON."""
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    return {"Content-Type": "application/json"}, json.dumps({"inputs": [tensor]}).encode()


FRAMINGS: Final[dict[str, Callable[[bytes], Framing]]] = {
    "raw": raw,
    "multipart": multipart,
    "triton": triton,
    "open-inference": open_inference,
}


def build(picture: bytes, *, framing: str, host: str, path: str) -> bytes:
    """Return a whole POST request.

    framing: a key of FRAMINGS. host: what the Host header names. path: of the route, query included.
    """
    headers, body = FRAMINGS[framing](picture)
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "Accept: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body
