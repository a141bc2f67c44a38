"""Which requests get a log line, and what is in it."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from models.errors import BackendError
from serve.access_log import EVERY, SLOW_A_SECOND, AccessLog, AccessMode
from serve.fake_service import FakeService, fake_release
from serve.ingress import create_app
from serve.logs import setup_logging
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.tracing import Trace

IMAGE = b"\xff\xd8\xff\xe0 canary"


class FakeTrace:
    """A trace that is nothing but its id."""

    trace_id = "f" * 32


def lines(write: Callable[[], None], level: str = "info") -> list[dict[str, Any]]:
    """Return the log lines that ``write`` causes."""
    stream = io.StringIO()
    stop = setup_logging(level, stream)
    try:
        write()
    finally:
        stop()
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def told(
    mode: AccessMode, *statuses: int, seconds: float = 0.01, path: str = "/v1/detect", level: str = "info"
) -> list[int]:
    """Return the statuses of those requests that got a line."""
    log = AccessLog(mode, slow_s=0.5, now=0.0)

    def write() -> None:
        for number, status in enumerate(statuses):
            log.ended({"path": path}, f"r{number}", path, status, begun=0.0, now=seconds, trace=None)

    return [line["status"] for line in lines(write, level)]


def test_errors_always_get_a_line() -> None:
    """5xx in every mode and at every level; what clients did wrong in none but ``all``."""
    for mode in ("errors", "sampled"):
        assert told(mode, 500, 503, 504)[:3] == [500, 503, 504]
    assert told("errors", 200, 400, 429, 499, 500, level="error") == [500]
    assert told("errors", 200, 400, 429, 499) == []
    assert told("all", 200, 400) == [200, 400]


def test_one_of_many_gets_a_line_where_lines_are_sampled() -> None:
    """The first, and every hundredth after it."""
    assert told("sampled", *[200] * (2 * EVERY)) == [200, 200]


def test_a_traced_request_gets_a_line_with_the_id_of_its_trace() -> None:
    """From the one the other is found."""
    trace: Trace = FakeTrace()  # type: ignore[assignment]

    def write() -> None:
        log = AccessLog("sampled", slow_s=0.5, now=0.0)
        for _ in range(3):
            log.ended({"path": "/"}, "r", "/", 200, begun=0.0, now=0.0, trace=trace)

    assert [line["trace_id"] for line in lines(write)] == [trace.trace_id] * 3


def test_slow_requests_get_a_line_up_to_a_rate() -> None:
    """Where everything is slow, the log does not fill."""
    assert len(told("errors", *[200] * 100, seconds=0.5)) == SLOW_A_SECOND


@pytest.mark.parametrize("path", ["/healthz/ready", "/healthz/live", "/metrics"])
def test_what_machines_ask_every_few_seconds_gets_none(path: str) -> None:
    """A replica that starts answers its probe with 503 often."""
    assert told("all", 503, 200, path=path) == []


async def test_a_line_tells_who_what_and_how_long_and_nothing_else() -> None:
    """Request, model, version, digest and each stage's time; nothing of what the client sent."""
    app = create_app(FakeService(), Settings(), access_log=AccessLog("all", slow_s=0.5, now=0.0))
    stream = io.StringIO()
    stop = setup_logging("info", stream)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            headers = {"x-request-id": "till-4", "user-agent": "canary", "x-client-id": "canary"}
            await client.post("/v1/detect?conf=0.123", content=IMAGE, headers=headers)
    finally:
        stop()
    assert "canary" not in stream.getvalue()
    line = orjson.loads(stream.getvalue())
    assert line.pop("ts")
    assert line.pop("ms") > 0
    assert line == {
        "level": "info", "logger": "serve.access_log", "message": "request", "request_id": "till-4",
        "route": "/v1/detect", "status": 200, "images": 1, "model": "checkout", "version": "1",
        "digest": fake_release().digest, "decode_ms": 1.5, "queue_ms": 0.25, "infer_ms": 8.125, "post_ms": 0.5,
    }  # fmt: skip


async def test_a_failed_request_has_a_line_without_a_model(caplog: pytest.LogCaptureFixture) -> None:
    """No answer, so no version to name; the request id leads to what was logged of the error."""
    service = FakeService()

    def fail(_number: int) -> None:
        raise BackendError("broken")  # noqa: EM101 - any words

    service.detectors["checkout"].before = fail
    app = create_app(service, Settings(), access_log=AccessLog("errors", slow_s=0.5, now=0.0))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
        with caplog.at_level(logging.INFO):
            answer = await client.post("/v1/detect", content=IMAGE)
    (line,) = [each.__dict__ for each in caplog.records if each.name == "serve.access_log"]
    assert (line["status"], line["levelname"], line["images"]) == (answer.status_code, "ERROR", 1)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert "model" not in line
