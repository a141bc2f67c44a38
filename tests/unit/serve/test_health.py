"""Probes and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

    from serve.fake_service import FakeService


async def test_live_does_not_depend_on_anything(client: httpx.AsyncClient, service: FakeService) -> None:
    """A process that cannot serve still lives; restarting it would not help."""
    service.not_ready = "loading"
    service.fault = RuntimeError()
    assert (await client.get("/healthz/live")).status_code == 200


async def test_ready_says_why_not(client: httpx.AsyncClient, service: FakeService) -> None:
    """The reason is the problem's detail."""
    assert (await client.get("/healthz/ready")).json() == {"status": "ready"}
    service.not_ready = "The canary image is not seen"
    response = await client.get("/healthz/ready")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["detail"] == "The canary image is not seen"


async def test_metrics_are_passed_on(client: httpx.AsyncClient, service: FakeService) -> None:
    """As Prometheus' text format."""
    response = await client.get("/metrics")
    assert response.content == service.exposition
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
