"""A canary in whatever a client may send is found nowhere afterwards: no log, no metric, no file."""

from __future__ import annotations

import base64
import io
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest
from PIL import Image, PngImagePlugin

from serve.home import remembered_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

pytestmark = pytest.mark.long

CANARY = "cAnArY7f3Zq9"
TOLD_S = 12.0
"""Time after which logs and metrics hold what they ever will: Ray's reports are five seconds apart."""
CHUNK = 2**20


def pictures(service: Service) -> dict[str, bytes]:
    """Return good pictures and broken ones, each with the canary in its metadata and behind its end."""
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = CANARY, CANARY, CANARY
    tray = Image.open(io.BytesIO(service.tray)).convert("RGB").resize((320, 240))
    text = PngImagePlugin.PngInfo()
    text.add_text(CANARY, CANARY)
    text.add_itxt(CANARY, CANARY, zip=True)
    made: dict[str, bytes] = {}
    for kind, options in (
        ("jpeg", {"exif": exif, "comment": CANARY.encode()}),
        ("png", {"exif": exif, "pnginfo": text}),
        ("webp", {"exif": exif}),
    ):
        buffer = io.BytesIO()
        tray.save(buffer, kind, **options)
        made[kind] = buffer.getvalue()
        assert CANARY.encode() in made[kind]
    return made


def accepted(service: Service) -> Iterator[httpx.Response]:
    """Send requests that are answered with 200, the canary wherever it does no harm."""
    url = f"{service.url}/v1/detect"
    headers = {
        "User-Agent": CANARY,
        "Referer": f"https://{CANARY}.example/{CANARY}",
        "Cookie": f"session={CANARY}",
        "X-Client-Id": CANARY,
        "X-Forwarded-For": CANARY,
        "Authorization": f"Bearer {CANARY}",
        "Accept-Language": CANARY,
        f"X-{CANARY}": CANARY,
        "tracestate": f"vendor={CANARY}",
        "baggage": f"user={CANARY}",
    }
    for kind, picture in pictures(service).items():
        yield httpx.post(url, content=picture + CANARY.encode(), headers={**headers, "Content-Type": f"image/{kind}"})
        yield httpx.post(url, files={"file": (f"{CANARY}.jpg", picture, f"image/{kind}; name={CANARY}")})
        yield httpx.post(url, json={"image": base64.b64encode(picture).decode()}, headers=headers)
    yield httpx.get(f"{service.url}/healthz/live?{CANARY}={CANARY}", headers=headers)


def refused(service: Service) -> Iterator[httpx.Response]:
    """Send requests that are answered with 4xx."""
    base, url = service.url, f"{service.url}/v1/detect"
    jpeg = {"Content-Type": "image/jpeg"}
    for kind, picture in pictures(service).items():
        broken = picture[: len(picture) // 2]
        yield httpx.post(url, content=broken, headers={"Content-Type": f"image/{kind}"})
        yield httpx.post(url, files={"file": (CANARY, broken)}, params={"conf": CANARY})
    yield httpx.post(url, content=CANARY.encode(), headers=jpeg)
    yield httpx.post(url, content=service.tray, headers={"Content-Type": f"text/{CANARY}"})
    yield httpx.post(url, content=service.tray, headers={**jpeg, "X-Request-Timeout": CANARY})
    yield httpx.post(url, content=service.tray, headers={**jpeg, "Content-Encoding": CANARY})
    for query in (f"{CANARY}=1", f"conf={CANARY}", f"classes={CANARY}", f"normalize={CANARY}", f"decimals={CANARY}"):
        yield httpx.post(f"{url}?{query}", content=service.tray, headers=jpeg)
    yield httpx.post(url, data={CANARY: CANARY}, files={"file": (CANARY, service.tray)})
    yield httpx.post(url, files={CANARY: (CANARY, service.tray)})
    yield httpx.post(url, content=b"x", headers={"Content-Type": f"multipart/form-data; boundary={CANARY}"})
    for document in ({CANARY: CANARY}, {"image": CANARY}, {"image": f"https://{CANARY}"}, {"images": ["QQ==", CANARY]}):
        yield httpx.post(url, json=document)
    yield httpx.post(url, json={"image": "QQ==", CANARY: 1})
    yield httpx.post(url, content=f'{{"{CANARY}": '.encode(), headers={"Content-Type": "application/json"})
    for path in (f"/{CANARY}", f"/v1/{CANARY}?{CANARY}", f"/v1/models/{CANARY}/{CANARY}", f"/-/{CANARY}"):
        yield httpx.get(base + path)
    for path in ("", "/versions", "/rollout"):
        yield httpx.get(f"{base}/v1/models/{CANARY}{path}")
    for path in ("detect", "promote", "rollback"):
        yield httpx.post(f"{base}/v1/models/{CANARY}/{path}", content=service.tray, headers=jpeg)
    yield httpx.post(f"{base}/v1/models/checkout/rollback", content=CANARY.encode(), headers={"Host": f"{CANARY}.org"})
    yield httpx.post(f"{base}/v1/hooks/{CANARY}", json={CANARY: CANARY})
    yield httpx.request(CANARY.upper(), url, content=service.tray)
    yield httpx.put(url, content=CANARY.encode())


def broken(service: Service) -> list[bytes]:
    """Send what is hardly HTTP, and what breaks off; return the beginnings of the answers."""
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /v1/detect?{CANARY} HTTP/1.1\r\nHost: {CANARY}\r\nContent-Type: image/jpeg\r\n"
    answers = []
    for text in (
        f"GET /{CANARY} {CANARY} HTTP/1.1\r\n\r\n",
        f"{CANARY}\r\n\r\n",
        f"{CANARY} / HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\n{CANARY}\0: {CANARY}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nX-Long: {CANARY * 3000}\r\n\r\n",
        f"{head}Content-Length: {CANARY}\r\n\r\n{CANARY}",
        f"{head}Content-Length: 100000\r\n\r\n{CANARY}",
        f"{head}Transfer-Encoding: chunked\r\n\r\n{CANARY}",
        f"{head}X-Half: {CANARY}",
    ):
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            try:
                connection.sendall(text.encode())
                answers.append(connection.recv(65536)[:12])
            except OSError:  # ended by a reset, or still waiting for the rest
                answers.append(b"")
    return answers


def needles() -> list[bytes]:
    """Return the canary as it is, in capitals, and as it looks inside base64 at each of three offsets."""
    whole = [base64.b64encode(bytes(before) + CANARY.encode() + bytes(3)) for before in range(3)]
    return [CANARY.encode(), CANARY.upper().encode(), *(text[4:16] for text in whole)]


def files_with(folder: Path, needle: bytes) -> list[str]:
    """Return the files below ``folder`` that hold ``needle`` in their content or their name."""
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where) / name
            if not path.is_file() or path.is_symlink():
                continue
            held = needle in os.fsencode(name)
            with path.open("rb") as file:
                tail = b""
                while not held and (data := file.read(CHUNK)):
                    held = needle in tail + data
                    tail = data[-len(needle) :]
            if held:
                found.append(str(path.relative_to(folder)))
    return found


def test_what_a_client_sends_is_found_nowhere(service: Service) -> None:
    """Accepted, refused and broken requests: only the request id, which exists for that, shows that a log is kept."""
    own_id = "privacy-7c21"
    asked = httpx.post(
        f"{service.url}/v1/models/checkout/promote",
        json={"version": "no-such-version"},
        headers={"X-Request-Id": own_id},
        timeout=30,
    )
    assert asked.status_code in {404, 409}, asked.text
    assert [each.status_code for each in accepted(service) if each.status_code != 200] == []
    assert [each.status_code for each in refused(service) if not 400 <= each.status_code < 500] == []
    assert any(answer.startswith(b"HTTP/1.1 400") for answer in broken(service))
    assert service.detect()["images"][0]["results"]
    time.sleep(TOLD_S)  # the service under test lives in real time

    metrics = httpx.get(f"{service.url}/metrics", timeout=30)
    assert metrics.status_code == 200
    assert CANARY.lower() not in metrics.text.lower()
    folder = remembered_folder(service.home)
    assert folder is not None
    for needle in (
        CANARY.encode(),
        CANARY.upper().encode(),
        base64.b64encode(CANARY.encode())[:14],
        service.tray[5000:5032],
    ):
        assert files_with(folder, needle) == []
        assert needle not in service.log.read_bytes()
    picture = service.tray[5000:5032]
    for needle in needles():
        assert files_with(folder, needle) == []
        assert files_with(service.home, needle) == []
        assert needle not in service.log.read_bytes()
    assert files_with(folder, picture) == []
    logs = service.home / "logs"
    assert files_with(logs, picture) == []
    assert files_with(logs, own_id.encode()), "no log holds the request id: were these the logs?"
    assert orjson.loads(asked.content)["request_id"] == own_id
