"""The route for MLflow's webhooks: what it hints, and what each refusal looks like."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

import pytest

from models.errors import UnavailableError
from serve.hooks import MAX_EVENT_BODY, PATH
from serve.ingress import create_app
from serve.settings import Settings
from serve.webhook import sign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from fastapi import FastAPI

    from serve.fake_service import FakeService

SECRET = "registry"  # noqa: S105 - the test's own


@pytest.fixture
def hooked(service: FakeService) -> FastAPI:
    """Return an application that takes webhooks; it listens beyond this machine, as behind a registry elsewhere."""
    return create_app(service, Settings(host="0.0.0.0", admin_key="k", webhook_secret=SECRET))  # type: ignore[arg-type]  # noqa: S104


@pytest.fixture
async def registry(
    hooked: FastAPI, connected: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that stands for MLflow's server."""
    async with connected(hooked) as client:
        yield client


def event(model: str = "checkout", alias: str = "production", entity: str = "model_version_alias") -> bytes:
    """Return the body of an event."""
    data = {"name": model, "alias": alias, "version": "2"}
    return json.dumps({"entity": entity, "action": "created", "timestamp": "2026-11-21", "data": data}).encode()


def signed(body: bytes, *, ident: str = "one", off: float = 0.0) -> dict[str, str]:
    """Return the headers of a delivery that was signed ``off`` seconds from now."""
    timestamp = str(int(time.time() + off))
    return {
        "X-MLflow-Signature": sign(SECRET, ident, timestamp, body),
        "X-MLflow-Delivery-Id": ident,
        "X-MLflow-Timestamp": timestamp,
    }


@pytest.mark.parametrize("model", ["checkout", "street"])
async def test_a_moved_alias_is_a_hint_for_its_model(
    registry: httpx.AsyncClient, service: FakeService, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    """For exactly the model named, without an admin key, and noted in the log."""
    with caplog.at_level(logging.INFO, "steelyard.audit"):
        response = await registry.post(PATH, content=event(model), headers=signed(event(model)))
    assert (response.status_code, response.json()) == (200, {"hinted": True})
    assert service.hints == [(model, "one")]
    (line,) = caplog.records
    assert (line.message, line.__dict__["principal"], line.__dict__["delivery"]) == ("hint", "mlflow", "one")


@pytest.mark.parametrize("body", [event(alias="staging"), event("nobody", "staging"), event(entity="model_version")])
async def test_what_does_not_concern_production_is_taken_and_does_nothing(
    registry: httpx.AsyncClient, service: FakeService, body: bytes
) -> None:
    """So that MLflow's own test of a webhook succeeds, and other aliases cost nothing."""
    response = await registry.post(PATH, content=body, headers=signed(body))
    assert (response.status_code, response.json(), service.hints) == (200, {"hinted": False}, [])


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (event(), dict, 401, "invalid_signature"),
        (event(), lambda: signed(event("street")), 401, "invalid_signature"),
        (event(), lambda: signed(event(), off=-400), 401, "stale_delivery"),
        (event(), lambda: signed(event(), off=400), 401, "stale_delivery"),
        (event("nobody"), lambda: signed(event("nobody")), 404, "unknown_model"),
        (b"{}", lambda: signed(b"{}"), 400, "invalid_body"),
        (b" " * (MAX_EVENT_BODY + 1), lambda: signed(b" " * (MAX_EVENT_BODY + 1)), 413, "body_too_large"),
        (event(), lambda: {**signed(event()), "content-encoding": "gzip"}, 415, "unsupported_encoding"),
    ],
)
async def test_each_refusal_is_its_own_problem(
    registry: httpx.AsyncClient,
    service: FakeService,
    *,
    body: bytes,
    headers: Callable[[], dict[str, str]],
    status: int,
    code: str,
) -> None:
    """A 4xx that says what to mend, and no hint."""
    response = await registry.post(PATH, content=body, headers=headers())
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert service.hints == []
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_replayed_delivery_does_nothing(registry: httpx.AsyncClient, service: FakeService) -> None:
    """Whoever recorded a delivery cannot use it again."""
    headers = signed(event())
    assert (await registry.post(PATH, content=event(), headers=headers)).status_code == 200
    again = await registry.post(PATH, content=event(), headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "repeated_delivery")
    assert len(service.hints) == 1


async def test_a_delivery_that_failed_may_come_again(registry: httpx.AsyncClient, service: FakeService) -> None:
    """MLflow repeats after a 503 with the same id; it must not count as a replay."""
    headers = signed(event())
    service.fault = UnavailableError("the rollout restarts")
    assert (await registry.post(PATH, content=event(), headers=headers)).status_code == 503
    service.fault = None
    assert (await registry.post(PATH, content=event(), headers=headers)).status_code == 200


async def test_without_a_secret_there_is_no_route(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Nobody may hint who cannot sign."""
    response = await client.post(PATH, content=event(), headers=signed(event()))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert PATH not in app.openapi()["paths"]


def test_the_route_is_described(hooked: FastAPI) -> None:
    """Its headers and its answers stand in the OpenAPI document."""
    operation = hooked.openapi()["paths"][PATH]["post"]
    assert len(operation["parameters"]) == 3
    assert {"200", "401", "404", "409", "413"} <= set(operation["responses"])
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/HookAnswer")


def test_an_empty_secret_is_refused() -> None:
    """An empty variable must not open the route to everyone."""
    with pytest.raises(ValueError, match="at least 1"):
        Settings(webhook_secret="")  # type: ignore[arg-type]
