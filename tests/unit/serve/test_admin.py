"""Admin routes: who may, what they ask, and what each refusal looks like."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import RegistryError, UnavailableError
from models.rollout.order import PLAIN, Order, from_document
from serve.admin import MAX_ADMIN_BODY, OrderRequest
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    from serve.fake_service import FakeService

PROMOTE = "/v1/models/checkout/promote"
ROLLBACK = "/v1/models/checkout/rollback"
KEY = "correct horse"


@pytest.fixture(params=["0.0.0.0", "127.0.0.1"])  # noqa: S104 - keys are in force there
def guarded(request: pytest.FixtureRequest, service: FakeService, tmp_path: Path) -> FastAPI:
    """Return an application whose admin routes want a key, beyond loopback and on it."""
    return create_app(service, Settings(home=tmp_path, host=request.param, admin_key=KEY))  # type: ignore[arg-type]


async def test_promote_and_rollback_return_the_rollout(client: httpx.AsyncClient, service: FakeService) -> None:
    """Both answer with the state that /rollout shows."""
    promoted = await client.post(PROMOTE, json={"version": "2"})
    assert (promoted.status_code, promoted.json()["desired"]) == (200, "2")
    assert (await client.get("/v1/models/checkout/rollout")).json() == promoted.json()
    returned = await client.post(ROLLBACK)
    assert (returned.status_code, returned.json()["desired"]) == (200, "1")
    assert service.detectors["checkout"].generation == 3


@pytest.mark.parametrize(
    ("path", "request_", "status", "code"),
    [
        (PROMOTE, {"json": {"version": "99"}}, 404, "unknown_version"),
        (PROMOTE, {"json": {"version": "3"}}, 409, "release_rejected"),
        ("/v1/models/nope/promote", {"json": {"version": "2"}}, 404, "unknown_model"),
        ("/v1/models/nope/rollback", {}, 404, "unknown_model"),
        (ROLLBACK, {}, 409, "release_rejected"),
        (ROLLBACK, {"json": {"version": "1"}}, 400, "invalid_body"),
        (PROMOTE, {"json": {"version": 2}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": ""}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "1" * 65}}, 422, "invalid_option"),
        (PROMOTE, {"json": {}}, 400, "invalid_body"),
        (PROMOTE, {"json": {"version": "2", "force": True}}, 400, "invalid_body"),
        (PROMOTE, {"json": {"version": "2", "reason": " "}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "reason": "x" * 501}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "order": []}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "order": None}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "order": {"force": True}}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "order": {"canary": [0.5, 0.1]}}}, 422, "invalid_option"),
        (PROMOTE, {"json": {"version": "2", "order": {"fast": True}}}, 422, "invalid_option"),
        (PROMOTE, {"json": ["2"]}, 400, "invalid_body"),
        (
            PROMOTE,
            {"content": b'{"version":"2"} x', "headers": {"content-type": "application/json"}},
            400,
            "invalid_body",
        ),
        (PROMOTE, {"content": b'{"version":"2"}'}, 415, "unsupported_media_type"),
        (PROMOTE, {"content": b" " * (MAX_ADMIN_BODY + 1)}, 413, "body_too_large"),
    ],
)
async def test_each_refusal_is_its_own_problem(
    client: httpx.AsyncClient, service: FakeService, *, path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    """An operator learns what to mend, and a refused request changes nothing."""
    response = await client.post(path, **request_)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert service.detectors["checkout"].generation == 1


async def test_reason_and_order_reach_the_rollout(client: httpx.AsyncClient, service: FakeService) -> None:
    """What is left out takes its default; an empty order is none."""
    order = {"force": "hot fix", "canary": [0.05, 0.25], "step_s": 60}
    assert (await client.post(PROMOTE, json={"version": "2", "reason": "why", "order": order})).status_code == 200
    assert (await client.post(PROMOTE, json={"version": "1", "order": {}})).status_code == 200
    assert service.orders == [
        ("2", "why", Order(force="hot fix", canary=(0.05, 0.25), step_s=60.0)),
        ("1", "promote", PLAIN),
    ]


def test_the_documented_order_is_the_one_that_is_read() -> None:
    """Same fields, same defaults."""
    assert from_document(OrderRequest().model_dump()) == PLAIN
    assert list(OrderRequest.model_fields) == list(Order.__dataclass_fields__)


async def test_a_refused_version_says_why(client: httpx.AsyncClient) -> None:
    """The reason and the step stand in the problem."""
    body = (await client.post(PROMOTE, json={"version": "3"})).json()
    assert body["step"] == "promote"
    assert "sees nothing" in body["detail"]


@pytest.mark.parametrize("fault", [RegistryError("The registry does not answer; check it"), UnavailableError("later")])
async def test_a_control_plane_that_is_down_is_503(
    client: httpx.AsyncClient, service: FakeService, fault: Exception
) -> None:
    """With the advice when to come back."""
    service.fault = fault
    response = await client.post(PROMOTE, json={"version": "2"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Basic correct horse", KEY, "Bearer correct horse2", "Bearer ключ"],
)
async def test_without_the_key_nothing_happens(
    guarded: FastAPI,
    service: FakeService,
    connected: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
    authorization: str | None,
) -> None:
    """A missing or wrong key is 401, before the model is even looked up."""
    headers = {} if authorization is None else {"authorization": authorization.encode("utf-8")}
    async with connected(guarded) as client:
        for path in (PROMOTE, ROLLBACK, "/v1/models/nope/rollback"):
            response = await client.post(path, json={"version": "2"}, headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
    assert service.detectors["checkout"].generation == 1


async def test_the_key_opens_from_anywhere(
    guarded: FastAPI, connected: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
) -> None:
    """With the key it does not matter under which host name the service is reached."""
    headers = {"authorization": f"bearer {KEY}", "host": "detector.example.org"}
    async with connected(guarded) as client:
        assert (await client.post(PROMOTE, json={"version": "2"}, headers=headers)).status_code == 200
        assert (await client.post(ROLLBACK, headers={"x-api-key": KEY})).status_code == 200
        assert (await client.get("/v1/models/checkout/rollout", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example:8000"},
        {"host": ""},
    ],
)
async def test_without_a_key_a_web_page_cannot_roll_back(
    client: httpx.AsyncClient, service: FakeService, headers: dict[str, str]
) -> None:
    """A browser on the service's machine is no way in: other sites and rebound names are refused."""
    await client.post(PROMOTE, json={"version": "2"})
    response = await client.post(ROLLBACK, headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert service.detectors["checkout"].generation == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8000"},
        {"host": "[::1]:8000"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"},
    ],
)
async def test_without_a_key_this_machine_may(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Programs on the machine, and the service's own pages, pass."""
    assert (await client.post(PROMOTE, json={"version": "2"}, headers=headers)).status_code == 200


async def test_admin_requests_are_audited(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """Who wanted what, and how it ended, is in the log; refusals too."""
    with caplog.at_level(logging.INFO, "steelyard.audit"):
        await client.post(PROMOTE, json={"version": "2"}, headers={"x-request-id": "a"})
        await client.post(PROMOTE, json={"version": "99"}, headers={"x-request-id": "b"})
    lines = [(r.message, r.__dict__["request_id"], r.__dict__["version"], r.__dict__["result"]) for r in caplog.records]
    assert lines == [("promote", "a", "2", "accepted"), ("promote", "b", "99", "unknown_version")]
