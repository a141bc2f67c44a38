"""The layer around every route, over small applications of the test's own."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from starlette.requests import ClientDisconnect

from models.errors import OverloadedError
from serve import middleware
from serve.access_file import AccessFile
from serve.context import context_of
from serve.guard import Guard
from serve.middleware import EdgeMiddleware
from serve.prometheus import PrometheusSink
from serve.telemetry import HttpMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = Guard(AccessFile(Path("nowhere"), demanded=False), anonymous_predict=False, webhook=False)
SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


async def drive(app: ASGIApp, sent: list[Message] | None = None, **options: Any) -> list[Message]:
    """Send one request through the middleware around ``app``; return the messages it sends."""
    messages: list[Message] = [] if sent is None else sent

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)

    await EdgeMiddleware(app, longest_s=30.0, guard=OPEN, **options)(dict(SCOPE), receive, send)
    return messages


def failing(error: BaseException) -> ASGIApp:
    """Return an application that raises."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return app


async def test_an_unexpected_error_is_a_quiet_500_and_a_loud_log(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets the request id, under which the log holds the traceback."""
    with caplog.at_level(logging.ERROR):
        start, body = await drive(failing(RuntimeError("/srv/secret")))
    problem = orjson.loads(body["body"])
    assert (start["status"], problem["code"]) == (500, "internal")
    assert b"secret" not in body["body"]
    (record,) = caplog.records
    assert record.__dict__["request_id"] == problem["request_id"]
    assert record.exc_info


async def test_an_expected_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A full queue must not fill the log as well."""
    with caplog.at_level(logging.ERROR):
        start, _ = await drive(failing(OverloadedError("full")))
    assert start["status"] == 429
    assert not caplog.records


async def test_a_method_that_a_client_made_up_is_in_no_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every request gets one: whatever a client writes into it could be anything."""
    monkeypatch.setitem(SCOPE, "method", "SECRET")
    with caplog.at_level(logging.DEBUG, logger="serve.middleware"):
        await drive(failing(OverloadedError("full")))
    (record,) = caplog.records
    assert record.__dict__["method"] == "OTHER"


async def test_an_error_in_the_middle_of_an_answer_breaks_the_connection() -> None:
    """Half an answer must not look like a whole one, so the server is told."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    sent: list[Message] = []
    with pytest.raises(RuntimeError):
        await drive(app, sent)
    assert len(sent) == 1


async def test_a_route_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane that hangs costs one deadline, not a request for ever."""
    monkeypatch.setattr(middleware, "GRACE_S", -30.0)
    ended: list[bool] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    start, body = await drive(app)
    assert (start["status"], orjson.loads(body["body"])["code"], ended) == (504, "deadline_exceeded", [True])


async def test_requests_are_counted_under_their_outcome() -> None:
    """Answers, disconnects and cancellations, each under a status of its own."""
    sink = PrometheusSink()
    metrics = HttpMetrics(sink)

    async def fine(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    await drive(fine, metrics=metrics)
    await drive(failing(ClientDisconnect()), metrics=metrics)
    with pytest.raises(asyncio.CancelledError):
        await drive(failing(asyncio.CancelledError()), metrics=metrics)
    text = sink.render().decode()
    assert 'steelyard_http_requests_total{method="GET",route="unrouted",status="204"} 1.0' in text
    assert 'steelyard_http_requests_total{method="GET",route="unrouted",status="499"} 2.0' in text
    assert 'steelyard_http_request_seconds_count{route="unrouted"} 3.0' in text
    assert "steelyard_http_requests_in_flight 0.0" in text


async def test_requests_in_flight_are_counted() -> None:
    """A request counts from its entry until it has ended, however it ends."""
    sink = PrometheusSink()
    during: list[bytes] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        during.append(sink.render())
        raise RuntimeError

    await drive(app, metrics=HttpMetrics(sink))
    assert b"steelyard_http_requests_in_flight 1.0" in during[0]
    assert b"steelyard_http_requests_in_flight 0.0" in sink.render()


async def test_the_context_is_built_once_from_the_clock() -> None:
    """The deadline counts from the moment the request arrived."""
    seen: list[float] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(context_of(scope).deadline)

    await drive(app, clock=lambda: 100.0)
    assert seen == [130.0]


async def test_other_connections_pass_untouched() -> None:
    """Lifespan events are the server's, not requests."""
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        return {}

    await EdgeMiddleware(app, longest_s=1.0, guard=OPEN)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
