"""Request bytes: whole, of the length they name, and with the picture inside."""

from __future__ import annotations

import base64
import json
import struct

import framing
import pytest

PICTURE = b"\xff\xd8\xff" + bytes(range(256))


@pytest.mark.parametrize("name", sorted(framing.FRAMINGS))
def test_a_request_is_as_long_as_it_says(name: str) -> None:
    """Content-Length counts the body to the byte, whatever its shape."""
    request = framing.build(PICTURE, framing=name, host="127.0.0.1:9", path="/v1/detect?conf=0.5")
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])

    assert lines[0] == "POST /v1/detect?conf=0.5 HTTP/1.1"
    assert headers["Host"] == "127.0.0.1:9"
    assert int(headers["Content-Length"]) == len(body)
    assert PICTURE in body or base64.b64encode(PICTURE) in body


def test_a_triton_request_says_where_its_header_ends() -> None:
    """The element follows the JSON behind its own length in four bytes."""
    headers, body = framing.triton(PICTURE)
    end = int(headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(body[:end])["inputs"]

    assert tensor["parameters"]["binary_data_size"] == len(body) - end
    assert struct.unpack("<I", body[end : end + 4]) == (len(PICTURE),)
    assert body[end + 4 :] == PICTURE
