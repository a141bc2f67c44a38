"""Who asks, until when, under which trace: built once where a request enters, passed through every stage."""

from __future__ import annotations

import math
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from models.types import RequestContext
from serve.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping, Sequence

    from models.types import Answer
    from serve.tracing import Trace

REQUEST_ID: Final = b"x-request-id"
REQUEST_TIMEOUT: Final = b"x-request-timeout"
TRACEPARENT: Final = b"traceparent"
CLIENT_ID: Final = b"x-client-id"
_SCOPE_KEY: Final = "steelyard.context"
_TRACE_KEY: Final = "steelyard.trace"
_OUTCOMES_KEY: Final = "steelyard.outcomes"

LEAST_TIMEOUT_S: Final = 0.001
"""Nothing is answered in less (seconds)."""
_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,32})?([eE][+-]?\d{1,3})?", re.ASCII)
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """Return 32 random hex digits."""
    return uuid.uuid4().hex


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the client's ``X-Request-Id`` where it is 1 to 128 of ``A-Za-z0-9._:-``, else a new one.

    Anything else could forge log lines or headers further on, so it is replaced, not refused.
    """
    for name, value in headers:
        if name == REQUEST_ID and _SANE_ID.fullmatch(value):
            return value.decode("ascii")
    return new_request_id()


def build_context(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request_id: str,
    now: float,
    longest_s: float,
    key_id: str | None = None,
) -> RequestContext:
    """Return the context of a request that arrived at ``now`` (seconds on ``time.monotonic``'s clock).

    The deadline is ``longest_s`` away, or nearer where ``X-Request-Timeout`` asks for less (seconds, LEAST_TIMEOUT_S or
    more). A ``traceparent`` that is not W3C Trace Context level 1 is ignored, as that standard demands. ``X-Client-Id``
    counts where it is 1 to 128 of ``A-Za-z0-9._:-``; a client with any other, or with none, cannot be followed. key_id:
    of the API key that let the request in.
    Raises OptionError where the timeout is no such number.
    """
    allowed_s = longest_s
    traceparent: str | None = None
    client_id: str | None = None
    for name, value in headers:
        if name == REQUEST_TIMEOUT:
            allowed_s = min(longest_s, _seconds(value.decode("latin-1")))
        elif name == TRACEPARENT and _TRACEPARENT.fullmatch(value):
            traceparent = value.decode("ascii")
        elif name == CLIENT_ID and _SANE_ID.fullmatch(value):
            client_id = value.decode("ascii")
    return RequestContext(
        request_id=request_id,
        deadline=now + allowed_s,
        key_id=key_id,
        traceparent=traceparent,
        client_id=client_id,
    )


def _seconds(text: str) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else math.nan
    if not seconds >= LEAST_TIMEOUT_S:
        msg = f"X-Request-Timeout is not {LEAST_TIMEOUT_S} seconds or more; send for example 2.5, or leave it out"
        raise OptionError(msg, parameter="X-Request-Timeout")
    return seconds


def put_context(scope: MutableMapping[str, Any], context: RequestContext) -> None:
    """Store ``context`` in the ASGI scope."""
    scope[_SCOPE_KEY] = context


def find_context(scope: MutableMapping[str, Any]) -> RequestContext | None:
    """Return the context in the ASGI scope, None where the request was refused before it had one."""
    return scope.get(_SCOPE_KEY)


def context_of(scope: MutableMapping[str, Any]) -> RequestContext:
    """Return the context that the middleware stored in the ASGI scope."""
    context: RequestContext = scope[_SCOPE_KEY]
    return context


def put_trace(scope: MutableMapping[str, Any], trace: Trace) -> None:
    """Store the trace of a sampled request in the ASGI scope."""
    scope[_TRACE_KEY] = trace


def trace_of(scope: MutableMapping[str, Any]) -> Trace | None:
    """Return the trace in the ASGI scope, None where the request is not sampled."""
    return scope.get(_TRACE_KEY)


def put_outcomes(scope: MutableMapping[str, Any], outcomes: Sequence[Answer | Exception]) -> None:
    """Store in the ASGI scope what became of a request's images."""
    scope[_OUTCOMES_KEY] = outcomes


def outcomes_of(scope: MutableMapping[str, Any]) -> Sequence[Answer | Exception]:
    """Return what became of a request's images; empty where it never came to them."""
    outcomes: Sequence[Answer | Exception] = scope.get(_OUTCOMES_KEY, ())
    return outcomes
