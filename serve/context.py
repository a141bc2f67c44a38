"""Who asks, until when, under which trace: built once where a request enters, passed through every stage."""

from __future__ import annotations

import math
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from models.types import RequestContext
from serve.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

REQUEST_ID: Final = b"x-request-id"
REQUEST_TIMEOUT: Final = b"x-request-timeout"
TRACEPARENT: Final = b"traceparent"
CLIENT_ID: Final = b"x-client-id"
_SCOPE_KEY: Final = "steelyard.context"

_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
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
    headers: Iterable[tuple[bytes, bytes]], *, request_id: str, now: float, longest_s: float
) -> RequestContext:
    """Return the context of a request that arrived at ``now`` (seconds on ``time.monotonic``'s clock).

    The deadline is ``longest_s`` away, or nearer where ``X-Request-Timeout`` asks for less (seconds, > 0).
    A ``traceparent`` that is not W3C Trace Context level 1 is ignored, as that standard demands. ``X-Client-Id`` counts
    where it is 1 to 128 of ``A-Za-z0-9._:-``; a client with any other, or with none, cannot be followed.
    Raises OptionError where the timeout is no positive number.
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
    return RequestContext(request_id=request_id, deadline=now + allowed_s, traceparent=traceparent, client_id=client_id)


def _seconds(text: str) -> float:
    seconds = float(text) if _SECONDS.fullmatch(text) else math.nan
    if not seconds > 0.0:
        msg = "X-Request-Timeout is not a positive number of seconds; send for example 2.5, or leave it out"
        raise OptionError(msg, parameter="X-Request-Timeout")
    return seconds


def put_context(scope: MutableMapping[str, Any], context: RequestContext) -> None:
    """Store ``context`` in the ASGI scope."""
    scope[_SCOPE_KEY] = context


def context_of(scope: MutableMapping[str, Any]) -> RequestContext:
    """Return the context that the middleware stored in the ASGI scope."""
    context: RequestContext = scope[_SCOPE_KEY]
    return context
