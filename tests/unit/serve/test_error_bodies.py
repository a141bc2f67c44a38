"""What no answer may tell a client: paths of the machine, tracebacks, names of libraries, words of its own request."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from starlette.routing import Route

from models.errors import BackendError, RegistryError
from serve.access import Scope, issue
from serve.access_document import render
from serve.access_file import AccessFile
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    from serve.fake_service import FakeService

CANARY = "c4n4ry7f3e"
"""Planted in what the service knows and clients must not: its exceptions, its secret, the folder of its home."""
SENT = "cl1entw0rd"
"""Planted in what a client sends."""
JPEG = b"\xff\xd8\xff\xe0" + SENT.encode() + b"\x80\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + b"\xff" * 13 + SENT.encode()
LIBRARIES = (
    "pillow", "PIL", "numpy", "torch", "openvino", "onnx", "cv2", "opencv", "ultralytics", "starlette", "fastapi",
    "pydantic", "uvicorn", "h11", "orjson", "simplejpeg", "turbojpeg", "multipart.", "ray.", "mlflow", "sqlite",
    "psutil", "sqlalchemy", "anyio", "asyncio", "hmac.", "hashlib",
)  # fmt: skip
TELLING = re.compile(
    "|".join(
        (
            r"Traceback",
            r"File \"",
            r"\.py\b",
            r"line \d+, in",
            r"site-packages",
            r"(?<![\w.:/])/(?:home|usr|var|tmp|etc|opt|root|work|srv|mnt|proc|lib)\b",
            r"0x[0-9a-f]{6,}",
            r"<class ",
            r"\b\w+(?:Error|Exception)\b",
            *(rf"\b{re.escape(name)}" for name in LIBRARIES),
        )
    )
)
HOSTILE_BODIES: tuple[tuple[str, bytes], ...] = (
    ("application/json", b"{"),
    ("application/json", b"[" * 50_000),
    ("application/json", b"\xff\xfe\x00"),
    ("application/json", json.dumps({"image": SENT}).encode()),
    ("application/json", json.dumps({"image": 7, SENT: None}).encode()),
    ("application/json", json.dumps({"images": [SENT] * 9}).encode()),
    ("application/json", json.dumps({"version": f"../../{SENT}", "reason": "\x00"}).encode()),
    ("application/json", json.dumps({"version": "2", "order": {"canary": ["x"], SENT: 1}}).encode()),
    ("application/json", json.dumps({"point": f"actor.{SENT}", "action": "exit"}).encode()),
    ("multipart/form-data", b"--x"),
    ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="file"; filename="/etc/'
     + SENT.encode() + b'"\r\n\r\n' + JPEG + b"\r\n--x--\r\n"),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: " + b"\xff" * 500 + b"\r\n\r\n\r\n--x--\r\n"),
    ("image/jpeg", JPEG),
    ("image/png", PNG),
    ("image/svg+xml", b"<!ENTITY x SYSTEM 'file:///etc/passwd'>"),
    (f"text/{SENT}", b"\x00" * 64),
    ("", b""),
    ("application/json", b'{"version": 1e999}'),
)  # fmt: skip
HOSTILE_QUERIES = (
    "",
    f"?conf={SENT}",
    "?conf=nan&iou=inf&max_det=-1&classes=/etc/passwd",
    f"?{SENT}={SENT}",
    "?max_det=" + "9" * 400,
    "?classes=%00%ff%2e%2e%2f",
)
HOSTILE_NAMES = (
    "checkout",
    SENT,
    "..",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%00",
    "%ff%fe",
    "x" * 3000,
    "a%0d%0ab",
    "{model}",
)
HOSTILE_HEADERS: tuple[dict[str, bytes], ...] = (
    {},
    {"X-Request-Timeout": SENT.encode()},
    {"X-Request-Id": b"bad id \xff" + SENT.encode()},
    {"Content-Encoding": SENT.encode()},
    {"Content-Length": b"99999999999999999999"},
    {"X-Api-Key": SENT.encode(), "Authorization": b"Bearer \xff\x00"},
)


class _SecretError(Exception):
    """Something that nobody foresaw, with words that belong into a log."""


def routes_of(router: Any) -> list[Route]:
    """Return every route, those of included routers too."""
    found: list[Route] = []
    for route in router.routes:
        found += [route] if isinstance(route, Route) else routes_of(route.original_router)
    return found


async def walk(app: FastAPI, client: httpx.AsyncClient, headers: dict[str, str]) -> list[httpx.Response]:
    """Send something hostile of every kind to every route and to paths that are none; return the answers."""
    paths = [*sorted({route.path for route in routes_of(app)}), "/", f"/{SENT}", "/v1/models/a/b/c", "/-/x"]
    answers: list[httpx.Response] = []
    for path in paths:
        names = HOSTILE_NAMES if "{model}" in path else ("",)
        for number, (kind, body) in enumerate(HOSTILE_BODIES):
            name = names[number % len(names)]
            query = HOSTILE_QUERIES[number % len(HOSTILE_QUERIES)]
            extra = HOSTILE_HEADERS[number % len(HOSTILE_HEADERS)]
            sent = {"Content-Type": kind.encode()} | {name: value.encode() for name, value in headers.items()} | extra
            methods = ("GET", "POST") if number % 3 else ("GET", "POST", "PUT", "DELETE", "OPTIONS")
            answers += [
                await client.request(
                    method,
                    path.replace("{model}", name) + query,
                    content=body,
                    headers={name.encode(): value for name, value in sent.items()},
                )
                for method in methods
            ]
    return answers


def told(answer: httpx.Response) -> list[str]:
    """Return what an answer tells that it must not."""
    text = answer.text + " ".join(f"{name}: {value}" for name, value in answer.headers.items())
    found = [match[0] for match in TELLING.finditer(text)]
    return found + [word for word in (CANARY, sys.prefix) if word in text]


@pytest.mark.parametrize(
    ("fault", "keyed"),
    [
        (None, False),
        (None, True),
        (_SecretError(f"/srv/{CANARY}: torch broke"), False),
        (RegistryError("It is away; wait"), True),
    ],
)
async def test_no_error_tells_of_the_service_s_insides(
    tmp_path: Path,
    service: FakeService,
    connected: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
    fault: Exception | None,
    *,
    keyed: bool,
) -> None:
    """Whatever is sent where, with keys in force and without, while all is well and while everything breaks."""
    (tmp_path / CANARY).mkdir()
    settings = Settings(
        home=tmp_path / CANARY,
        models=("checkout", "street"),
        webhook_secret=SecretStr(CANARY),
        allow_fault_injection=True,
        max_images=4,
        max_body_bytes=100_000,
    )
    key, text = issue("all", set(Scope), 0.0)
    if keyed:
        settings.access_path.write_bytes(render([key]))
    access = AccessFile.of(settings)
    access.load()
    app = create_app(service, settings, access=access)
    service.fault = fault
    if fault is not None:
        broken = fault if isinstance(fault, _SecretError) else BackendError(f"/srv/{CANARY}: torch broke")

        def fail(_: int) -> None:
            raise broken

        service.detectors["checkout"].before = fail
    async with connected(app) as client:
        answers = await walk(app, client, {"Authorization": f"Bearer {text}"})
        answers += await walk(app, client, {}) if keyed else []
    statuses = {answer.status_code for answer in answers}
    assert {400, 404, 405} <= statuses
    assert (500 in statuses) is (fault is not None)
    assert (503 in statuses) is isinstance(fault, RegistryError)
    errors = [answer for answer in answers if answer.status_code >= 400]
    assert len(errors) > 300
    for answer in errors:
        assert told(answer) == [], (answer.request.method, answer.request.url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json" or answer.request.method == "HEAD"


@pytest.mark.parametrize(
    "text",
    [
        'File "/usr/lib/x.py", line 3, in f',
        "Traceback (most recent call last)",
        "cannot identify image file: PIL.UnidentifiedImageError",
        "torch.load failed",
        "no such file: /home/me/weights.pt",
        "<object at 0x7f31c0a2>",
        CANARY,
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    """Else the test above could not fail."""
    import httpx  # noqa: PLC0415 - only to make an answer

    assert told(httpx.Response(500, text=text))
