"""The route that arms fault points."""

from __future__ import annotations

import httpx
import pytest

from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import load_settings


def _client(service: FakeService, *, allowed: bool) -> httpx.AsyncClient:
    app = create_app(service, load_settings(allow_fault_injection=allowed))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")


async def test_a_point_is_armed_where_injection_is_allowed() -> None:
    """The service is told point and action."""
    service = FakeService()
    async with _client(service, allowed=True) as client:
        answer = await client.post("/v1/faults", json={"point": "actor.after_commit", "action": "exit"})
    assert answer.status_code == 200
    assert service.armed == {"actor.after_commit": "exit"}


async def test_the_route_does_not_exist_otherwise() -> None:
    """A service that does not allow fault injection answers 404."""
    async with _client(FakeService(), allowed=False) as client:
        answer = await client.post("/v1/faults", json={"point": "actor.after_commit", "action": "exit"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [({"point": "nowhere", "action": "exit"}, 422), ({"point": "actor.after_commit"}, 400), ([], 400)],
)
async def test_a_wrong_fault_is_refused(body: object, status: int) -> None:
    """An unknown point and a body without its keys are the client's mistakes."""
    async with _client(FakeService(), allowed=True) as client:
        answer = await client.post("/v1/faults", json=body)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
