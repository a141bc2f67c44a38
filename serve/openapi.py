"""What the OpenAPI document says of every route: shared pieces, and the schemas of all bodies in one place.

Handlers take the bare request, so nothing here is derived from their signatures; the tests compare both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from serve.context import LEAST_TIMEOUT_S
from serve.errors import PROBLEM_JSON, TYPE_PREFIX

if TYPE_CHECKING:
    from fastapi import FastAPI

SCHEMAS: Final = "#/components/schemas/"
KEYLESS: Final = frozenset({"/healthz/live", "/healthz/ready", "/v1/hooks/mlflow"})
"""Routes that are open, or have a signature in place of a key."""


class ProblemBody(BaseModel):
    """An error, RFC 9457; ``code`` is stable and safe to match on."""

    model_config = ConfigDict(extra="allow", title="Problem", use_attribute_docstrings=True)

    type: str = Field(examples=[TYPE_PREFIX + "invalid_option"])
    """``urn:steelyard:error:`` and the code."""
    title: str
    """What kind of error it is, in a few words."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened, and what to do next."""
    code: str = Field(examples=["invalid_option"])
    """Stable name of the kind of error."""
    request_id: str
    """The request's id, as in ``X-Request-Id``; the service's log holds it."""
    parameter: str | None = None
    """The option at fault, where there is one."""
    step: str | None = None
    """The step that refused a weight version, where one did."""


def ref(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to ``model``'s schema."""
    return {"$ref": SCHEMAS + model.__name__}


REQUEST_ID_HEADER: Final = {
    "X-Request-Id": {
        "description": "The request's id: the client's where it sent a sane one.",
        "schema": {"type": "string"},
    }
}
RETRY_AFTER_HEADER: Final = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}
}

_ERRORS: Final[dict[int, str]] = {
    400: "The image or the body cannot be read (`invalid_image`, `invalid_body`).",
    401: "No valid API key, while keys are in force (`unauthorized`); or a webhook's signature is wrong, or its time "
    "(`invalid_signature`, `stale_delivery`).",
    403: "The key lacks the scope, or the request comes from another site (`forbidden`).",
    404: "No such model or version (`unknown_model`, `unknown_version`).",
    408: "The body was not complete in time (`body_timeout`).",
    409: "The version may not serve; `step` and `detail` say why (`release_rejected`). A webhook's delivery was taken "
    "before (`repeated_delivery`).",
    413: "Too many bytes, pixels or images (`body_too_large`, `image_too_large`, `too_many_images`).",
    415: "A format, media type or encoding that is not served (`unsupported_image`, `unsupported_media_type`, "
    "`unsupported_encoding`).",
    422: "An option of the wrong type or out of range; `parameter` names it (`invalid_option`).",
    429: "The queue is full, or the key's limit is reached; nothing was computed (`overloaded`, `quota_exceeded`).",
    500: "The service failed; its log holds the reason under the request id (`internal`, `backend_failed`).",
    503: "Nothing can answer now (`unavailable`, `not_ready`, `registry_unreachable`, `ledger_unreachable`, "
    "`release_fault`).",
    504: "The request's time ran out before its answer was ready (`deadline_exceeded`).",
}


def problems(*statuses: int) -> dict[str, Any]:
    """Return the error responses of a route."""
    return {
        str(status): {
            "description": _ERRORS[status],
            "headers": {**REQUEST_ID_HEADER, **(RETRY_AFTER_HEADER if status in (429, 503) else {})},
            "content": {PROBLEM_JSON: {"schema": ref(ProblemBody)}},
        }
        for status in statuses
    }


def answer(description: str, model: type[BaseModel], **headers: dict[str, Any]) -> dict[str, Any]:
    """Return the 200 response of a route that answers ``model`` as JSON."""
    return {
        "200": {
            "description": description,
            "headers": {**REQUEST_ID_HEADER, **headers},
            "content": {"application/json": {"schema": ref(model)}},
        }
    }


MODEL_PARAMETER: Final = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "Name of a model, as `GET /v1/models` lists it.",
    "schema": {"type": "string"},
}
REQUEST_ID_PARAMETER: Final = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Id to find the request by, 1 to 128 of `A-Za-z0-9._:-`; anything else is replaced.",
    "schema": {"type": "string"},
}
TIMEOUT_PARAMETER: Final = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds after which the answer is not wanted any more; the service's own limit holds above it.",
    "schema": {"type": "number", "minimum": LEAST_TIMEOUT_S, "maximum": 999_999_999},
}


def _put_under_keys(paths: dict[str, dict[str, Any]]) -> None:
    """Add to all routes but those that never take a key how to send one, and what its lack is answered."""
    for path, operations in paths.items():
        if path in KEYLESS:
            continue
        for operation in operations.values():
            # The empty choice is a service without keys in force.
            operation["security"] = [{"bearer": []}, {"header": []}, {}]
            operation["responses"] = dict(
                sorted({**problems(401, 403, 422, 429, 500, 504), **operation["responses"]}.items())
            )


def install(app: FastAPI, models: list[type[BaseModel]]) -> None:
    """Make ``app.openapi()`` describe its routes with the schemas of ``models``, built on first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            wanted: list[tuple[Any, Literal["validation", "serialization"]]] = [
                (model, "serialization") for model in (ProblemBody, *models)
            ]
            _, definitions = models_json_schema(wanted, ref_template=SCHEMAS + "{model}")
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            schema["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            }
            _put_under_keys(schema["paths"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
