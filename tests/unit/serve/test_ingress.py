"""The application as a whole: unknown routes, wrong methods, and the limits it passes on."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from serve.errors import PROBLEM_JSON
from serve.fake_service import FakeService, fake_release
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping
    from contextlib import AbstractAsyncContextManager

    import httpx
    from fastapi import FastAPI


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/v1/detect/", "/v1/models/", "/v1/models/a/b/c", "/redoc", "/v1/models/%2e%2e/x"]
)
async def test_an_unknown_route_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    """No redirect, no HTML: 404 with the same shape as every error."""
    response = await client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.headers["content-type"] == PROBLEM_JSON
    assert response.headers["x-request-id"] == response.json()["request_id"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/detect", "POST"),
        ("DELETE", "/v1/models/checkout", "GET"),
        ("POST", "/v1/models", "GET"),
        ("GET", "/v1/models/checkout/promote", "POST"),
        ("POST", "/metrics", "GET"),
    ],
)
async def test_a_wrong_method_names_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    """405 carries Allow, as HTTP demands."""
    response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == allow


async def test_two_applications_share_nothing(app: FastAPI, client: httpx.AsyncClient, service: FakeService) -> None:
    """Each application has its own OpenAPI document, and making one starts nothing."""
    assert app.openapi()["info"]["title"] == "Steelyard"
    assert service.detectors["checkout"].calls == 0
    assert (await client.get("/openapi.json")).json() == app.openapi()


@pytest.mark.parametrize("path", ["/v1/models", "/healthz/live", "/docs", "/nope"])
async def test_every_answer_has_an_id_and_a_fixed_type(client: httpx.AsyncClient, path: str) -> None:
    """Browsers do not guess what an answer is, and every answer can be found in the log."""
    response = await client.get(path, headers={"x-request-id": "bad id\t"})
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(response.headers["x-request-id"]) == 32


def picture(size: tuple[int, int] = (640, 480), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Return an encoded picture of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1] // 16, size[0] // 16, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).convert(mode).save(stream, kind)
    return stream.getvalue()


def blank(side: int) -> bytes:
    """Return a one-bit PNG of ``side`` x ``side`` pixels: few bytes, many pixels."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(deflate.compress(row * 1000) for _ in range(side // 1000)) + deflate.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    framed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


class EngineService(FakeService):
    """The fake control plane around one real engine."""

    def __init__(self, engine: Engine) -> None:
        """Serve ``engine`` as the model checkout."""
        super().__init__()
        self._engine = engine

    @property
    def engines(self) -> Any:
        """Return the real engine."""
        return {"checkout": self._engine}


@pytest.fixture
async def real(
    connected: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
) -> AsyncIterator[tuple[Engine, httpx.AsyncClient]]:
    """Yield a real engine on the fake backend, serving version 1, and a client of it."""
    settings = Settings(max_body_bytes=4_000_000)
    async with Engine(FakeBackend(), EngineSettings(threads=1)) as engine:
        first = fake_release()
        await engine.prepare(first)
        engine.flip(first.digest, 1)
        async with connected(create_app(EngineService(engine), settings)) as client:
            yield engine, client


async def test_a_real_engine_answers_all_three_bodies_alike(real: tuple[Engine, httpx.AsyncClient]) -> None:
    """Decoding, batching and rendering included, apart from the times they took."""
    _, client = real
    image = picture()
    answers = [
        await client.post("/v1/detect?conf=0&decimals=10", **body)
        for body in (
            {"content": image},
            {"files": {"file": ("a.jpg", image)}},
            {"json": {"image": base64.b64encode(image).decode()}},
        )
    ]
    shown = [answer.json()["images"][0] for answer in answers]
    assert shown[0]["shape"] == [480, 640]
    assert len(shown[0]["results"]) == 4
    assert shown[0]["results"] == shown[1]["results"] == shown[2]["results"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_image"),
        (b"just text", 415, "unsupported_image"),
        (picture()[:2000], 400, "invalid_image"),
        (picture(kind="GIF", mode="P"), 415, "unsupported_image"),
        (blank(20_000), 413, "image_too_large"),
        (b"\xff" * 4_000_001, 413, "body_too_large"),
    ],
    ids=["empty", "text", "truncated", "gif", "bomb", "large"],
)
async def test_bad_images_are_4xx_and_harm_nobody(
    real: tuple[Engine, httpx.AsyncClient], body: bytes, status: int, code: str
) -> None:
    """Each mistake has its own code, and the next good request does not notice it."""
    engine, client = real
    response = await client.post("/v1/detect", content=body, headers={"content-type": "image/jpeg"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == PROBLEM_JSON
    assert (await client.post("/v1/detect", content=picture())).status_code == 200
    assert (engine.queued, engine.running) == (0, 0)


async def test_swaps_under_load_fail_nobody_and_mix_nothing(real: tuple[Engine, httpx.AsyncClient]) -> None:
    """Every request is answered, by the one version it names, and never by an older one than before."""
    engine, client = real
    image = base64.b64encode(picture((64, 64))).decode()
    releases = [fake_release(version=str(number)) for number in (2, 3, 4, 5)]
    expected: dict[str, Any] = {}
    seen: list[tuple[int, str, Any]] = []
    done = False
    enough = asyncio.Event()
    wanted = 0

    async def post() -> None:
        while not done:
            response = await client.post("/v1/detect?conf=0", json={"images": [image] * 3})
            body = response.json()
            assert response.status_code == 200, body
            results = [one["results"] for one in body["images"]]
            assert results[0] == results[1] == results[2]
            seen.append((body["metadata"]["generation"], body["metadata"]["version"], results[0]))
            if len(seen) >= wanted:
                enough.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(post())
        for generation, release in enumerate(releases, start=2):
            await engine.prepare(release)
            wanted = len(seen) + 8
            enough.clear()
            engine.flip(release.digest, generation)
            await enough.wait()
        done = True
    for generation, version, results in seen:
        assert version == str(generation)
        assert expected.setdefault(version, results) == results
    assert set(expected) >= {"2", "3", "4", "5"}


_TWO = b"".join(
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n\xff\xd8' + bytes(9) + b"\r\n"
    for _ in range(2)
)


@pytest.mark.parametrize(
    ("path", "kind", "body", "status"),
    [
        ("/v1/detect", b"image/jpeg", b"\xff\xd8" + bytes(9), 200),
        ("/v1/models/street/detect", b"multipart/form-data; boundary=x", _TWO + b"--x--\r\n", 200),
        ("/v1/detect", b"image/jpeg", b"no image", 400),
        ("/v1/detect", b"application/json", b"{", 400),
        ("/v1/models/nobody/detect", b"image/jpeg", b"\xff\xd8", 404),
    ],
)
async def test_a_request_leaves_nothing_that_only_a_collection_frees(
    app: FastAPI, path: str, kind: bytes, body: bytes, status: int
) -> None:
    """Its parts, kept alive by each other, would hold up everybody in the collection that ends them."""
    parts: list[int] = []

    async def request() -> None:
        whole: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not whole:
                await asyncio.Event().wait()
            return whole.pop()

        async def send(message: MutableMapping[str, Any]) -> None:
            parts.append(message.get("status", 0))

        headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", kind), (b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        rest = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
        await app({**scope, **rest, "headers": headers, "client": ("127.0.0.1", 1)}, receive, send)

    await asyncio.create_task(request())
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await asyncio.create_task(request())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gc.collect() < 20
    finally:
        gc.enable()
    assert max(parts) == status
