"""One table from every error to its HTTP answer: RFC 9457 ``application/problem+json`` with a stable ``code``.

The edge adds these errors to the tree of ``models/errors.py``; nothing below the edge raises them.

    RequestError
    ├── InvalidBodyError          JSON, multipart or base64 that cannot be parsed
    ├── TooManyImagesError        more images than one request may carry
    ├── BodyTooLargeError         more bytes than one request may carry
    ├── BodyTimeoutError          the body did not arrive within the request's deadline
    ├── UnsupportedMediaTypeError a Content-Type that no route understands
    ├── UnsupportedEncodingError  a compressed body
    ├── ForbiddenError            an admin request from a place that may not ask
    ├── SignatureError            a webhook's delivery that is not signed, or not with our secret
    │   └── StaleDeliveryError        one signed too long ago, or in the future
    └── RepeatedDeliveryError     one that was taken before
    CapacityError
    └── NotReadyError             the readiness probe's no
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.errors import (
    CapacityError,
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidOptionError,
    LedgerError,
    OverloadedError,
    QuotaExceededError,
    RegistryError,
    ReleaseFaultError,
    ReleaseRejectedError,
    RequestError,
    SteelyardError,
    UnauthorizedError,
    UnavailableError,
    UnknownModelError,
    UnknownVersionError,
    UnsupportedImageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

PROBLEM_JSON: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:steelyard:error:"
INTERNAL_DETAIL: Final = (
    "The service failed on this request. Its log holds the reason under this request id; try again."
)


class OptionError(InvalidOptionError):
    """An option outside its type or range; ``parameter`` is the name under which the client sent it."""

    def __init__(self, message: str, *, parameter: str) -> None:
        """Keep the message and the parameter's name."""
        super().__init__(message)
        self.parameter = parameter


class InvalidBodyError(RequestError):
    """The body is not the JSON, multipart form or base64 that its media type promises."""

    code = "invalid_body"


class TooManyImagesError(RequestError):
    """The request carries more images than the service answers at once."""

    code = "too_many_images"


class BodyTooLargeError(RequestError):
    """The body exceeds the service's limit."""

    code = "body_too_large"


class BodyTimeoutError(RequestError):
    """The body was not complete when the request's time ran out."""

    code = "body_timeout"


class UnsupportedMediaTypeError(RequestError):
    """The Content-Type is none that the route accepts."""

    code = "unsupported_media_type"


class UnsupportedEncodingError(RequestError):
    """The body is compressed."""

    code = "unsupported_encoding"


class ForbiddenError(RequestError):
    """The request may not use this route from where it comes."""

    code = "forbidden"


class SignatureError(RequestError):
    """A webhook's delivery carries no signature made with this service's secret."""

    code = "invalid_signature"


class StaleDeliveryError(SignatureError):
    """A webhook's delivery is genuine, and signed too long ago or in the future."""

    code = "stale_delivery"


class RepeatedDeliveryError(RequestError):
    """A webhook's delivery is genuine and was taken before."""

    code = "repeated_delivery"


class NotReadyError(CapacityError):
    """The service takes no requests now; the message is the reason."""

    code = "not_ready"


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of error is answered.

    retry_after_s: seconds for ``Retry-After``; an error's own ``retry_after_s`` wins; None sends no such header.
    opaque: the message stays in the log, because it may tell of the service's insides.
    """

    status: int
    title: str
    retry_after_s: float | None = None
    opaque: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


_ACCEPTED: Final = "image/jpeg, image/png, image/webp, application/octet-stream, multipart/form-data, application/json"

TABLE: Final[Mapping[type[Exception], Row]] = {
    RequestError: Row(400, "Invalid request"),
    InvalidBodyError: Row(400, "Invalid body"),
    InvalidImageError: Row(400, "Invalid image"),
    UnauthorizedError: Row(401, "Key missing or wrong", headers={"WWW-Authenticate": 'Bearer realm="steelyard"'}),
    SignatureError: Row(
        401, "Signature missing or wrong", headers={"WWW-Authenticate": 'HMAC-SHA256 realm="steelyard"'}
    ),
    ForbiddenError: Row(403, "Forbidden"),
    UnknownModelError: Row(404, "Unknown model"),
    UnknownVersionError: Row(404, "Unknown version"),
    BodyTimeoutError: Row(408, "Body arrived too slowly"),
    ReleaseRejectedError: Row(409, "Version may not serve"),
    RepeatedDeliveryError: Row(409, "Delivered before"),
    BodyTooLargeError: Row(413, "Body too large"),
    ImageTooLargeError: Row(413, "Image too large"),
    TooManyImagesError: Row(413, "Too many images"),
    UnsupportedImageError: Row(415, "Unsupported image format"),
    UnsupportedMediaTypeError: Row(415, "Unsupported media type", headers={"Accept-Post": _ACCEPTED}),
    UnsupportedEncodingError: Row(415, "Unsupported content encoding", headers={"Accept-Encoding": "identity"}),
    InvalidOptionError: Row(422, "Invalid option"),
    OverloadedError: Row(429, "Overloaded", retry_after_s=1.0),
    QuotaExceededError: Row(429, "Quota exceeded", retry_after_s=1.0),
    SteelyardError: Row(500, "Internal error", opaque=True),
    CapacityError: Row(503, "Unavailable", retry_after_s=1.0),
    UnavailableError: Row(503, "Unavailable", retry_after_s=1.0),
    NotReadyError: Row(503, "Not ready", retry_after_s=1.0),
    LedgerError: Row(503, "Ledger unreachable", retry_after_s=5.0),
    RegistryError: Row(503, "Registry unreachable", retry_after_s=5.0),
    ReleaseFaultError: Row(503, "Version cannot be prepared now", retry_after_s=5.0),
    DeadlineExceededError: Row(504, "Deadline exceeded"),
}
"""The nearest row along the error's class hierarchy counts; whatever has none is an opaque 500."""

_UNEXPECTED: Final = Row(500, "Internal error", opaque=True)
_ROUTING_CODES: Final = {404: "not_found", 405: "method_not_allowed"}
_ROUTING_DETAILS: Final = {
    404: "There is nothing at this address; GET /docs lists the routes.",
    405: "The route does not take this method; the Allow header names those it takes.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as a client sees it. ``extra`` holds members beyond RFC 9457's, such as ``parameter``."""

    status: int
    title: str
    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)

    def body(self, request_id: str) -> dict[str, object]:
        """Return the members in the order they are written."""
        return {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            **self.extra,
        }

    def item(self) -> dict[str, object]:
        """Return the short form that one failed image of several carries."""
        return {"code": self.code, "status": self.status, "detail": self.detail}


def row_of(kind: type[BaseException]) -> Row:
    """Return the nearest row along ``kind``'s class hierarchy, or the opaque 500."""
    for ancestor in kind.__mro__:
        row = TABLE.get(ancestor)
        if row is not None:
            return row
    return _UNEXPECTED


def problem_of(error: BaseException) -> Problem:
    """Translate any exception; never shows the message of one that is not meant for clients."""
    if isinstance(error, HTTPException):
        return _routing_problem(error)
    row = row_of(type(error))
    headers = dict(row.headers)
    if row.retry_after_s is not None:
        seconds = getattr(error, "retry_after_s", row.retry_after_s)
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    extra = {name: getattr(error, name) for name in ("parameter", "step") if hasattr(error, name)}
    return Problem(
        status=row.status,
        title=row.title,
        code=error.code if isinstance(error, SteelyardError) else SteelyardError.code,
        detail=INTERNAL_DETAIL if row.opaque else str(error),
        headers=headers,
        extra=extra,
    )


def _routing_problem(error: HTTPException) -> Problem:
    status = error.status_code
    return Problem(
        status=status,
        title=HTTPStatus(status).phrase,
        code=_ROUTING_CODES.get(status, "invalid_request" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal"),
        detail=_ROUTING_DETAILS.get(status, HTTPStatus(status).description or HTTPStatus(status).phrase),
        headers=dict(error.headers or {}),
    )


def problem_response(problem: Problem, request_id: str) -> Response:
    """Return the answer to send. The request id's header is added where all answers get it."""
    return Response(
        orjson.dumps(problem.body(request_id)),
        status_code=problem.status,
        headers=dict(problem.headers),
        media_type=PROBLEM_JSON,
    )
