"""The table of errors and the shape in which a client sees them."""

from __future__ import annotations

import inspect

import orjson
import pytest
from starlette.exceptions import HTTPException

from models import errors as domain
from models.errors import SteelyardError
from serve import errors as edge
from serve.errors import PROBLEM_JSON, TYPE_PREFIX, OptionError, problem_of, problem_response, row_of

CASES: list[tuple[Exception, int, str, str | None]] = [
    (domain.RequestError("x"), 400, "invalid_request", None),
    (domain.InvalidImageError("x"), 400, "invalid_image", None),
    (domain.UnsupportedImageError("x"), 415, "unsupported_image", None),
    (domain.ImageTooLargeError("x"), 413, "image_too_large", None),
    (domain.InvalidOptionError("x"), 422, "invalid_option", None),
    (OptionError("x", parameter="conf"), 422, "invalid_option", None),
    (domain.UnknownModelError("x"), 404, "unknown_model", None),
    (domain.UnknownVersionError("x"), 404, "unknown_version", None),
    (domain.UnauthorizedError("x"), 401, "unauthorized", None),
    (edge.ForbiddenError("x"), 403, "forbidden", None),
    (edge.InvalidBodyError("x"), 400, "invalid_body", None),
    (edge.TooManyImagesError("x"), 413, "too_many_images", None),
    (edge.BodyTooLargeError("x"), 413, "body_too_large", None),
    (edge.BodyTimeoutError("x"), 408, "body_timeout", None),
    (edge.UnsupportedMediaTypeError("x"), 415, "unsupported_media_type", None),
    (edge.UnsupportedEncodingError("x"), 415, "unsupported_encoding", None),
    (domain.OverloadedError("x", retry_after_s=2.2), 429, "overloaded", "3"),
    (domain.QuotaExceededError("x", retry_after_s=1.2), 429, "quota_exceeded", "2"),
    (domain.UnavailableError("x", retry_after_s=0.01), 503, "unavailable", "1"),
    (domain.CapacityError("x"), 503, "unavailable", "1"),
    (edge.NotReadyError("x"), 503, "not_ready", "1"),
    (domain.DeadlineExceededError("x"), 504, "deadline_exceeded", None),
    (domain.ReleaseRejectedError("x", step="promote"), 409, "release_rejected", None),
    (domain.ReleaseFaultError("x", step="load"), 503, "release_fault", "5"),
    (domain.LedgerError("x"), 503, "ledger_unreachable", "5"),
    (domain.RegistryError("x"), 503, "registry_unreachable", "5"),
]


@pytest.mark.parametrize(("error", "status", "code", "retry_after"), CASES, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_code_and_advice(
    error: Exception, status: int, code: str, retry_after: str | None
) -> None:
    """Every kind of error is answered with its row of the table, its message and nothing else."""
    problem = problem_of(error)
    response = problem_response(problem, "id-1")
    body = orjson.loads(response.body)
    assert (response.status_code, response.media_type) == (status, PROBLEM_JSON)
    assert response.headers.get("retry-after") == retry_after
    assert {
        "type": TYPE_PREFIX + code,
        "status": status,
        "detail": "x",
        "code": code,
        "request_id": "id-1",
    }.items() <= (body.items())
    assert body["title"]


@pytest.mark.parametrize(
    "error", [ValueError("/srv/secret"), domain.BackendError("/srv/secret"), domain.ConversionError("/srv/secret")]
)
def test_internal_errors_stay_inside(error: Exception) -> None:
    """What is not meant for clients is a 500 whose body does not hold the message."""
    response = problem_response(problem_of(error), "id-1")
    assert response.status_code == 500
    assert b"secret" not in response.body


def test_extra_members_name_the_parameter_and_the_step() -> None:
    """A client learns which option or which step was at fault."""
    assert problem_of(OptionError("x", parameter="iou")).body("i")["parameter"] == "iou"
    assert problem_of(domain.ReleaseRejectedError("x", step="golden")).body("i")["step"] == "golden"


def test_every_public_error_is_in_the_table_on_purpose() -> None:
    """No error of the tree falls through to 500 by accident."""
    meant = {SteelyardError, domain.BackendError, domain.ConversionError, domain.SettingsError, domain.ReleaseError}
    meant.add(domain.EvaluationError)
    for module in (domain, edge):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, SteelyardError):
                assert (row_of(kind).status == 500) == (kind in meant), kind


def test_routing_errors_keep_their_headers() -> None:
    """A 405 says which methods there are; other routing errors have a code, too."""
    problem = problem_of(HTTPException(405, headers={"Allow": "POST"}))
    assert (problem.code, problem.headers) == ("method_not_allowed", {"Allow": "POST"})
    assert problem_of(HTTPException(404)).code == "not_found"
    assert problem_of(HTTPException(400)).code == "invalid_request"
    assert problem_of(HTTPException(500)).code == "internal"
