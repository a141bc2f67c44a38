"""Requests that are too large, too nested or too odd, sent through the real HAProxy: each a quick 4xx."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from running import Service

MIB = 2**20
LIMIT = 20 * MIB
QUICK_S = 5.0
"""Longer than any refusal takes on a busy machine, shorter than every deadline."""
BOUNDARY = "frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="conf"\r\n\r\nx\r\n'.encode()
TEXT_ONLY_PROXY = 400


def exchange(service: Service, *pieces: bytes, most: int = 10**9) -> tuple[int, dict[str, str]]:
    """Send ``pieces`` of a request as they are, at most ``most`` bytes, until an answer comes; return it."""
    host, port = service.url.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=QUICK_S) as connection:
        connection.settimeout(QUICK_S)
        for piece in pieces:
            if sent >= most:
                break
            try:
                connection.sendall(piece)
            except (ConnectionResetError, BrokenPipeError):
                break
            sent += len(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
    return response.status, json.loads(body) if body.startswith(b"{") else {}


def post(head: str, *, path: str = "/v1/detect") -> bytes:
    """Return the head of a POST."""
    return f"POST {path} HTTP/1.1\r\nHost: limits\r\nContent-Type: image/jpeg\r\n{head}\r\n\r\n".encode()


def test_a_declared_length_is_refused_before_a_byte_of_the_body(service: Service) -> None:
    """20 MB and one byte, or numbers that no integer holds: 413 at once."""
    for length in (LIMIT + 1, 10**18):
        status, problem = exchange(service, post(f"Content-Length: {length}"))
        assert (status, problem["code"]) == (413, "body_too_large")


def test_a_chunked_body_is_refused_where_it_exceeds_the_limit(service: Service) -> None:
    """A body that never says how long it is ends at 20 MB, in chunks large and small."""
    for size, count in ((MIB, 30), (16, 4 * LIMIT // (16 * 100))):
        chunk = f"{size:x}\r\n".encode() + bytes(size) + b"\r\n"
        pieces = [chunk] * count if size == MIB else [chunk * 100] * count
        begun = time.monotonic()
        status, problem = exchange(service, post("Transfer-Encoding: chunked"), *pieces)
        assert (status, problem["code"]) == (413, "body_too_large")
        assert time.monotonic() - begun < 3 * QUICK_S


def test_a_length_and_chunks_together_are_no_way_in(service: Service) -> None:
    """Two framings of one body are how requests are smuggled: HAProxy drops the length, or refuses the request."""
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    status, _ = exchange(service, post(f"Content-Length: {len(smuggled)}\r\nTransfer-Encoding: chunked"), smuggled)
    assert status == 400
    status, _ = exchange(service, post("Content-Length: 4\r\nContent-Length: 5"), b"12345")
    assert status == 400


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity"])
def test_compressed_bodies_are_refused(service: Service, encoding: str) -> None:
    """Nothing is inflated."""
    answer = httpx.post(
        f"{service.url}/v1/detect",
        content=gzip.compress(service.tray),
        headers={"Content-Type": "image/jpeg", "Content-Encoding": encoding},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


HOSTILE = {
    "a form of 20 MB of tiny parts": (PART * (LIMIT // len(PART) - 1), FORM),
    "a form of 20 MB of empty parts": (f"--{BOUNDARY}\r\n\r\n\r\n".encode() * (LIMIT // 20), FORM),
    "a part of 20 MB of headers": (f"--{BOUNDARY}\r\n".encode() + b"a: b\r\n" * (LIMIT // 6 - 10), FORM),
    "JSON of 20 MB of empty lists": (b'{"images":[' + b"[]," * (LIMIT // 3 - 10) + b'""]}', JSON),
    "JSON 250 000 deep": (b"[" * 250_000 + b"]" * 250_000, JSON),
    "JSON with a lone surrogate": (b'{"image":"\\ud800"}', JSON),
    "JSON with a huge number": (b'{"image":"QQ==","max_det":' + b"9" * MIB + b"}", JSON),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bodies_are_refused_quickly(service: Service, case: str) -> None:
    """Neither their size nor their shape costs the service more than reading them."""
    body, headers = HOSTILE[case]
    begun = time.monotonic()
    answer = httpx.post(f"{service.url}/v1/detect", content=body, headers=headers, timeout=30)
    assert answer.status_code in {400, 413, 422}, answer.text
    assert time.monotonic() - begun < QUICK_S


def test_long_queries_and_headers_are_refused(service: Service) -> None:
    """A query of many options, or one or a header of many bytes, is a 4xx."""
    many = httpx.post(f"{service.url}/v1/detect?{'classes=1&' * 600}", content=service.tray, timeout=30)
    assert (many.status_code, many.json()["parameter"]) == (422, "query")
    for head, path in (("", "/v1/detect?" + "a" * 20_000), ("X-Long: " + "a" * 20_000, "/v1/detect")):
        status, _ = exchange(service, post(f"{head}\r\nContent-Length: 0".strip(), path=path))
        assert status in {400, 414, 431}


@pytest.mark.parametrize("method", ["BREW", "TRACE", "CONNECT", "PROPFIND"])
def test_made_up_methods_are_refused_at_the_door(service: Service, method: str) -> None:
    """What no route of any service here takes gets no further than HAProxy."""
    status, problem = exchange(service, f"{method} /v1/detect HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status in {400, 405}
    assert status == TEXT_ONLY_PROXY or problem["code"] == "method_not_allowed"


def test_a_request_may_say_how_long_its_answer_is_wanted(service: Service) -> None:
    """A deadline that cannot be met is a 504 or an honest 429 at once, and costs no answer."""
    begun = time.monotonic()
    answer = httpx.post(
        f"{service.url}/v1/detect",
        content=service.tray,
        headers={"Content-Type": "image/jpeg", "X-Request-Timeout": "0.001"},
        timeout=30,
    )
    assert answer.status_code in {408, 429, 504}, answer.text
    assert time.monotonic() - begun < QUICK_S


def test_no_address_that_a_client_gives_is_fetched(service: Service) -> None:
    """Wherever an address stands, nothing connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(2.0)
        port = listener.getsockname()[1]
        address = f"http://127.0.0.1:{port}/picture.jpg"
        url = f"{service.url}/v1/detect"
        svg = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink"><image xlink:href="{address}"/></svg>'.encode()
        jpeg = service.tray[:2] + b"\xff\xe1\x00\x50http://ns.adobe.com/xap/1.0/\0".ljust(0x52, b" ") + service.tray[2:]
        answers = [
            httpx.post(url, json={"image": address}, timeout=30),
            httpx.post(url, json={"images": [address, f"data:image/jpeg,{address}"]}, timeout=30),
            httpx.post(url, json={"url": address}, timeout=30),
            httpx.post(url, json={"image": f"file:///proc/self/environ#{address}"}, timeout=30),
            httpx.post(url, content=address.encode(), headers={"Content-Type": "image/jpeg"}, timeout=30),
            httpx.post(url, content=address.encode(), headers={"Content-Type": "text/uri-list"}, timeout=30),
            httpx.post(url, content=svg, headers={"Content-Type": "image/svg+xml"}, timeout=30),
            httpx.post(url, files={"file": (address, address.encode(), "image/jpeg")}, timeout=30),
            httpx.post(url, data={"file": address}, files={"url": (address, b"x")}, timeout=30),
            httpx.post(f"{url}?source={address}", content=service.tray, timeout=30),
            httpx.post(f"{service.url}/v1/models/{address}/detect", content=service.tray, timeout=30),
        ]
        assert [each.status_code for each in answers if not 400 <= each.status_code < 500] == []
        fine = {"Content-Type": "image/jpeg", "Referer": address, "Forwarded": f"host={address}", "Link": address}
        fine |= {"X-Forwarded-For": f"127.0.0.1:{port}", "X-Forwarded-Host": f"127.0.0.1:{port}", "Origin": address}
        assert httpx.post(url, content=jpeg, headers=fine, timeout=30).status_code == 200
        with pytest.raises(TimeoutError):
            listener.accept()
