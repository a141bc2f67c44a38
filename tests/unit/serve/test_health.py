"""Probes and metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import UnavailableError
from serve.fake_service import FakeService
from serve.fake_time import run
from serve.health import REFRESH_S, UNKNOWN, RegistryNote

if TYPE_CHECKING:
    import httpx


async def test_live_does_not_depend_on_anything(client: httpx.AsyncClient, service: FakeService) -> None:
    """A process that cannot serve still lives; restarting it would not help."""
    service.not_ready = "loading"
    service.fault = RuntimeError()
    assert (await client.get("/healthz/live")).status_code == 200


async def test_ready_says_why_not(client: httpx.AsyncClient, service: FakeService) -> None:
    """The reason is the problem's detail."""
    assert (await client.get("/healthz/ready")).json()["status"] == "ready"
    service.not_ready = "The canary image is not seen"
    response = await client.get("/healthz/ready")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.json()["detail"] == "The canary image is not seen"


async def test_metrics_are_passed_on(client: httpx.AsyncClient, service: FakeService) -> None:
    """As Prometheus' text format."""
    response = await client.get("/metrics")
    assert response.content == service.exposition
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


class _Rollout(FakeService):
    """A service whose rollout says of the registry what a test put down, after ``slow_s`` seconds."""

    def __init__(self, *models: str) -> None:
        super().__init__(*models)
        self.registry: dict[str, dict[str, Any] | None] = dict.fromkeys(self.detectors)
        self.slow_s = 0.0
        self.asked = 0

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout with what it knows of the registry."""
        self.asked += 1
        await asyncio.sleep(self.slow_s)
        return await super().status(model) | {"registry": self.registry[model]}


def _known(*, reachable: bool | None, age_s: float | None, from_cache: bool = False) -> dict[str, Any]:
    return {"reachable": reachable, "age_s": age_s, "failures": 1, "reason": None, "from_cache": from_cache}


@pytest.mark.parametrize(
    ("known", "note"),
    [
        (None, None),
        (_known(reachable=None, age_s=None), None),
        (_known(reachable=True, age_s=3.0, from_cache=True), "reachable"),
        (
            _known(reachable=False, age_s=None, from_cache=True),
            "unreachable since start; serving version 1 from the cache",
        ),
        (_known(reachable=False, age_s=None), "unreachable since start; serving version 1"),
        (_known(reachable=False, age_s=34.4), "unreachable for 34 s; serving version 1"),
    ],
)
def test_readiness_tells_how_the_rollout_stands_with_the_registry(
    known: dict[str, Any] | None, note: str | None
) -> None:
    """A start without the registry says so until the registry answers."""

    async def story() -> None:
        service = _Rollout()
        service.registry["checkout"] = known
        assert await RegistryNote(service).read() == note

    run(story())


def test_models_that_differ_are_named() -> None:
    """One registry, but an alias each."""

    async def story() -> None:
        service = _Rollout("a", "b")
        service.registry = {name: _known(reachable=True, age_s=0.0) for name in "ab"}
        clock = asyncio.get_running_loop().time
        note = RegistryNote(service, clock=clock)
        assert await note.read() == "reachable"
        service.registry["b"] = _known(reachable=False, age_s=9.0)
        assert await note.read() == "reachable", "not asked anew for every probe"
        await asyncio.sleep(REFRESH_S + 0.1)
        assert await note.read() == "a: reachable; b: unreachable for 9 s; serving version 1"

    run(story())


def test_a_rollout_that_does_not_answer_delays_no_probe() -> None:
    """The last word stands meanwhile, one question is under way however many probes come, and a failure is told."""

    async def story() -> None:
        service = _Rollout()
        service.registry["checkout"] = _known(reachable=True, age_s=0.0)
        clock = asyncio.get_running_loop().time
        note = RegistryNote(service, clock=clock)
        await note.read()
        service.slow_s = 60.0
        await asyncio.sleep(REFRESH_S + 0.1)
        begun = clock()
        for _ in range(5):
            assert await note.read() == "reachable"
        assert clock() - begun < 1.0
        assert service.asked == 2
        service.slow_s, service.fault = 0.0, UnavailableError("gone")
        await asyncio.sleep(60.0)
        for _ in range(2):
            await asyncio.sleep(REFRESH_S + 0.1)
            await note.read()
        assert await note.read() == UNKNOWN
        service.fault = ZeroDivisionError()
        service.registry["checkout"] = None
        await asyncio.sleep(REFRESH_S + 0.1)
        assert await note.read() == UNKNOWN

    run(story())


async def test_the_probe_shows_the_note(client: httpx.AsyncClient, service: FakeService) -> None:
    """Beside its yes."""
    service.fault = UnavailableError("the rollout actor is gone")
    assert (await client.get("/healthz/ready")).json() == {"status": "ready", "registry": UNKNOWN}
