"""The OpenAPI document describes what the routes do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from serve.protocols.native_options import NAMES

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from serve.fake_service import FakeService

IMAGE = b"\xff\xd8\xff\xe0 a picture"
PROBLEM = "application/problem+json"


def checker(app: FastAPI, name: str) -> jsonschema.Draft202012Validator:
    """Return a validator for one schema of the document."""
    components = app.openapi()["components"]
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def references(value: Any) -> set[str]:
    """Return all $refs in a document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values()))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere(app: FastAPI) -> None:
    """Generators of clients stumble over dangling references."""
    schema = app.openapi()
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) <= known


def test_the_detect_routes_are_described_whole(app: FastAPI) -> None:
    """All bodies, all options, all answers, all headers."""
    for path in ("/v1/detect", "/v1/models/{model}/detect"):
        operation = app.openapi()["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {
            *("image/jpeg", "image/png", "image/webp", "application/octet-stream"),
            *("multipart/form-data", "application/json"),
        }
        assert [p["name"] for p in operation["parameters"] if p["in"] == "query"] == list(NAMES)
        assert set(operation["responses"]) == {
            "200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503", "504",
        }  # fmt: skip
        assert {"X-Model-Version", "X-Weights-Digest", "Server-Timing", "X-Request-Id"} == set(
            operation["responses"]["200"]["headers"]
        )
        assert "Retry-After" in operation["responses"]["429"]["headers"]


def test_every_error_answer_is_a_problem(app: FastAPI) -> None:
    """No route promises another error shape, and none has FastAPI's own 422."""
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert response["content"] == {PROBLEM: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}


@pytest.mark.parametrize(
    ("method", "path", "request_", "name"),
    [
        ("POST", "/v1/detect?conf=0", {"files": [("file", ("a", IMAGE)), ("file", ("b", b"text"))]}, "DetectAnswer"),
        ("GET", "/v1/models", {}, "ModelList"),
        ("GET", "/v1/models/checkout", {}, "ModelDetail"),
        ("GET", "/v1/models/checkout/versions", {}, "VersionList"),
        ("GET", "/v1/models/checkout/rollout", {}, "RolloutState"),
        ("GET", "/healthz/ready", {}, "Readiness"),
        ("GET", "/nope", {}, "ProblemBody"),
        ("POST", "/v1/detect?conf=7", {"content": IMAGE}, "ProblemBody"),
    ],
)
async def test_answers_fit_their_schemas(
    app: FastAPI, client: httpx.AsyncClient, *, method: str, path: str, request_: dict[str, Any], name: str
) -> None:
    """What is sent is what was promised."""
    response = await client.request(method, path, **request_)
    checker(app, name).validate(response.json())


async def test_a_model_that_is_loading_fits_too(app: FastAPI, client: httpx.AsyncClient, service: FakeService) -> None:
    """Absent values are allowed for in the schemas."""
    service.detectors["checkout"].serving = None
    checker(app, "ModelList").validate((await client.get("/v1/models")).json())
    checker(app, "ModelDetail").validate((await client.get("/v1/models/checkout")).json())


def test_routes_name_how_a_key_is_sent(app: FastAPI) -> None:
    """Tools that read the document know where the key goes, and what its lack is answered; probes take none."""
    schema = app.openapi()
    assert schema["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            keyless = path.startswith(("/healthz/", "/v1/hooks/"))
            assert operation.get("security") == (None if keyless else [{"bearer": []}, {"header": []}, {}])
            assert keyless or {"401", "403"} <= operation["responses"].keys()
