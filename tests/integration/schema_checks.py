"""What Schemathesis loads beside its own checks: whatever is refused although the schema allows it has a known reason.

A schema cannot say that bytes are a picture, that text is base64 of one, which classes the serving version knows, that
an option stands in the query or in the body, or that shares rise. So such refusals pass Schemathesis' own check, and
here each must name exactly that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, CheckContext, Response

BEYOND_SCHEMAS = {
    "invalid_image",
    "unsupported_image",
    "image_too_large",
    "too_many_images",
    "body_timeout",
    "deadline_exceeded",
}
BEYOND_SCHEMAS_BY_WORDS = {
    "invalid_body": ("base64", "fetched from addresses", "not a well-formed multipart form"),
    "invalid_option": ("has no class", "times; give it once", "do not rise"),
}


@schemathesis.check
def late_only_for_who_is_in_a_hurry(_context: CheckContext, response: Response, case: Case) -> None:
    """Raise AssertionError where a request is late that did not say how long its answer is wanted."""
    hurried = any(name.lower() == "x-request-timeout" for name in case.headers or {})
    assert response.status_code != 504 or hurried, response.text


@schemathesis.check
def refused_for_a_reason(_context: CheckContext, response: Response, case: Case) -> None:
    """Raise AssertionError where a valid request is refused for anything that the schema could have said."""
    mode = case.meta.generation.mode if case.meta is not None else None
    if mode is None or not mode.is_positive or not 400 <= response.status_code < 500:
        return
    if response.status_code in {401, 403, 404, 405, 409, 429}:
        return
    problem = response.json()
    code, detail = problem["code"], problem["detail"]
    words = BEYOND_SCHEMAS_BY_WORDS.get(code, ())
    assert code in BEYOND_SCHEMAS or any(each in detail for each in words), f"{code}: {detail}"
