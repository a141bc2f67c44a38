"""The one layer around every route: request id, context, errors as problem+json, counting. Pure ASGI, to stay thin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from models.errors import DeadlineExceededError
from serve.context import build_context, put_context, request_id_of
from serve.errors import problem_of, problem_response, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serve.telemetry import HttpMetrics

CLIENT_GONE: Final = 499
"""Logged and counted for requests whose client left; nobody receives it."""
STARTED_KEY: Final = "steelyard.started"
UNROUTED: Final = "unrouted"
GRACE_S: Final = 1.0
"""Seconds past its deadline after which a request is ended that did not end itself."""
_TOO_LATE: Final = DeadlineExceededError("The request's time ran out; allow more time, or send it again later")
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")

_log = logging.getLogger(__name__)


class EdgeMiddleware:
    """Wraps the whole application; no exception leaves it, save one that strikes in the middle of an answer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        longest_s: float,
        metrics: HttpMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Give each request ``longest_s`` seconds and count it in ``metrics``."""
        self._app = app
        self._longest_s = longest_s
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[STARTED_KEY] = started = self._clock()
        request_id = request_id_of(scope["headers"])
        identity = (b"x-request-id", request_id.encode("ascii"))
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), identity, _NOSNIFF]
            await send(message)

        try:
            context = build_context(scope["headers"], request_id=request_id, now=started, longest_s=self._longest_s)
            put_context(scope, context)
            async with asyncio.timeout(context.deadline - started + GRACE_S):
                await self._app(scope, receive, send_named)
        except ClientDisconnect:
            # Some servers insist on an answer even when nobody is there to read it.
            with contextlib.suppress(Exception):
                await send_named({"type": "http.response.start", "status": CLIENT_GONE, "headers": []})
                await send_named({"type": "http.response.body", "body": b""})
            status = CLIENT_GONE
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        except Exception as error:
            if row_of(type(error)).opaque and not isinstance(error, TimeoutError):
                _log.exception("request failed", extra={"request_id": request_id})
            if status:
                raise
            problem = problem_of(_TOO_LATE if isinstance(error, TimeoutError) else error)
            await problem_response(problem, request_id)(scope, receive, send_named)
        finally:
            self._count(scope, request_id, status, self._clock() - started)

    def _count(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNROUTED)
        if self._metrics is not None:
            self._metrics.request(route, scope["method"], status, seconds)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "request",
                extra={
                    "request_id": request_id,
                    "route": route,
                    "method": scope["method"],
                    "status": status,
                    "ms": round(1e3 * seconds, 3),
                },
            )
