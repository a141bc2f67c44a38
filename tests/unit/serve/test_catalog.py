"""What ``/v1/models`` and the routes below it show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.errors import RegistryError
from serve.fake_service import NAMES, fake_release

if TYPE_CHECKING:
    import httpx

    from serve.fake_service import FakeService


async def test_models_are_listed_in_order(client: httpx.AsyncClient) -> None:
    """The shape is exactly the promised one."""
    models = (await client.get("/v1/models")).json()["models"]
    assert [model["name"] for model in models] == ["checkout", "street"]
    assert models[0] == {
        "name": "checkout",
        "version": "1",
        "digest": fake_release().digest,
        "task": "detect",
        "classes": list(NAMES),
        "state": "ready",
    }


async def test_a_model_without_a_release_is_loading(client: httpx.AsyncClient, service: FakeService) -> None:
    """The list and the model's own page work before the first release."""
    service.detectors["checkout"].serving = None
    listed = (await client.get("/v1/models")).json()["models"][0]
    shown = (await client.get("/v1/models/checkout")).json()
    assert (listed["state"], listed["version"], listed["classes"]) == ("loading", None, [])
    assert listed.items() <= shown.items()


async def test_one_model_shows_what_its_release_says(client: httpx.AsyncClient) -> None:
    """Defaults and sizes are there for a client to read."""
    shown = (await client.get("/v1/models/checkout")).json()
    assert shown["thresholds"] == {"conf": 0.25, "iou": 0.7, "max_det": 300}
    assert (shown["imgsz"], shown["stride"], shown["generation"], shown["backend"]) == (640, 32, 1, "fake")
    assert shown["metrics"] == {"map50_95": 0.5}


async def test_versions_have_the_promised_keys(client: httpx.AsyncClient) -> None:
    """Oldest first, each with its aliases, state and metrics."""
    versions = (await client.get("/v1/models/checkout/versions")).json()["versions"]
    assert [version["version"] for version in versions] == ["1", "2", "3"]
    assert versions[0] == {
        "version": "1",
        "digest": fake_release().digest,
        "aliases": ["production"],
        "state": "ready",
        "metrics": {"map50_95": 0.5},
        "created": "2026-01-01T00:00:00Z",
        "signature": "unsigned",
        "signed_by": None,
    }


async def test_the_rollout_is_passed_on_as_it_is(client: httpx.AsyncClient, service: FakeService) -> None:
    """Nothing is added to and nothing lost from the actor's account."""
    assert (await client.get("/v1/models/checkout/rollout")).json() == await service.status("checkout")


@pytest.mark.parametrize("path", ["", "/versions", "/rollout"])
async def test_an_unknown_model_is_404(client: httpx.AsyncClient, path: str) -> None:
    """On every route below /v1/models."""
    response = await client.get(f"/v1/models/nope{path}")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


@pytest.mark.parametrize("path", ["/versions", "/rollout"])
async def test_a_registry_that_is_down_is_503(client: httpx.AsyncClient, service: FakeService, path: str) -> None:
    """The routes that need it say so; the list of models does not need it."""
    service.fault = RegistryError("The registry does not answer; check it")
    assert (await client.get(f"/v1/models/checkout{path}")).status_code == 503
    assert (await client.get("/v1/models")).status_code == 200
