"""The one layer around every route: keys, request id, context, errors as problem+json, counting. Pure ASGI, so thin."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from models.errors import DeadlineExceededError
from serve.access_log import UNTOLD
from serve.connection import UnreadBody
from serve.context import build_context, put_context, put_trace, request_id_of, trace_of
from serve.errors import problem_of, problem_response, row_of
from serve.guard import path_of
from serve.telemetry import method_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from models.types import RequestContext
    from serve.access import AccessKey, Limits
    from serve.access_log import AccessLog
    from serve.guard import Guard
    from serve.telemetry import HttpMetrics
    from serve.tracing import Tracing

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
        guard: Guard,
        limits: Limits | None = None,
        metrics: HttpMetrics | None = None,
        tracing: Tracing | None = None,
        access_log: AccessLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Give each request that ``guard`` admits ``longest_s`` seconds and count it in ``metrics``.

        limits: those of the keys, None for none. tracing, access_log: told of every request; None for none.
        """
        self._app = app
        self._longest_s = longest_s
        self._guard = guard
        self._limits = limits
        self._metrics = metrics
        self._tracing = tracing
        self._access_log = access_log
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[STARTED_KEY] = started = self._clock()
        if self._metrics is not None:
            self._metrics.entered()
        request_id = request_id_of(scope["headers"])
        identity = (b"x-request-id", request_id.encode("ascii"))
        status = 0
        unread = UnreadBody(scope, receive, send)

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), identity, _NOSNIFF]
            await unread.send(message)

        try:
            # Before anything of the request is looked at: whoever has no key learns nothing.
            key = self._guard.admit(scope)
            context = build_context(
                scope["headers"],
                request_id=request_id,
                now=started,
                longest_s=self._longest_s,
                key_id=key.key_id if key else None,
            )
            put_context(scope, context)
            self._begin_trace(scope, context, started)
            async with asyncio.timeout(context.deadline - started + GRACE_S):
                await self._within_limits(key, scope, unread.receive, send_named)
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
            self._count(scope, request_id, status, started)
        await unread.finish()

    async def _within_limits(self, key: AccessKey | None, scope: Scope, receive: Receive, send: Send) -> None:
        if key is None or self._limits is None:
            await self._app(scope, receive, send)
            return
        await self._limits.enter(key)
        try:
            await self._app(scope, receive, send)
        finally:
            self._limits.leave(key)

    def _begin_trace(self, scope: Scope, context: RequestContext, started: float) -> None:
        if self._tracing is None or path_of(scope) in UNTOLD:
            return
        trace = self._tracing.begin(context, started)
        if trace is not None:
            put_trace(scope, trace)

    def _count(self, scope: Scope, request_id: str, status: int, started: float) -> None:
        now = self._clock()
        seconds = now - started
        route = getattr(scope.get("route"), "path", UNROUTED)
        if self._metrics is not None:
            self._metrics.request(route, scope["method"], status, seconds)
        trace = trace_of(scope)
        if trace is not None:
            trace.end(route, status, now)
        if self._access_log is not None:
            self._access_log.ended(scope, request_id, route, status, begun=started, now=now, trace=trace)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "request",
                extra={
                    "request_id": request_id,
                    "route": route,
                    "method": method_label(scope["method"]),
                    "status": status,
                    "ms": round(1e3 * seconds, 3),
                },
            )
