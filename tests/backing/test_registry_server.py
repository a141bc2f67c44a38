"""MLflow's server over PostgreSQL is the registry: a service that knows its URI alone swaps, and outlives both."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from clients import regressions
from daemons import until
from open_load import OpenLoad, failed
from verdicts import converged, other_version

from models import demo
from models.weights.mlflow_registry import MlflowRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conftest import Registry
    from open_load import Sent
    from running import Service

pytestmark = pytest.mark.timeout(600)
"""Seconds, with what comes before the first test: a database, a server, a registration and a service."""
MODEL = demo.MODEL_NAME
RATE = 20.0
"""Requests a second, sent when they are due."""
OUTAGE_S = 6.0
"""Twelve polls of the registry."""


def _loaded(service: Service) -> OpenLoad:
    return OpenLoad(service.url, [service.tray], rate=RATE, regulars=["till-1", "till-2"])


def _nobody_suffered(sent: Sequence[Sent], *, versions: set[str]) -> None:
    """Demand that every request was answered, by these versions, and by no older one than an answer before it."""
    assert failed(sent) == []
    assert {each.version for each in sent} == versions
    assert regressions(list(sent)) == []


def _figures(what: str, sent: Sequence[Sent], **seconds: float) -> None:
    told = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for name, value in seconds.items())
    print(f"\n{what}: {len(failed(sent))} failed of {len(sent)}; {told}")  # noqa: T201 - figures


@pytest.mark.sample
def test_register_promote_swap_and_roll_back_over_the_server(service: Service, registry: Registry) -> None:
    """Registered elsewhere, fetched through the server's proxy, promoted and rolled back under load: 0 failed."""
    assert service.detect()["metadata"]["version"] == "1"
    with _loaded(service) as load:
        load.wait_for(20)
        registered = registry.register(2, "--json")
        assert registered.returncode == 0, registered.stderr
        assert json.loads(registered.stdout)["version"] == "2"
        begun = time.monotonic()
        promoted = service.cli("promote", MODEL, "2")
        assert promoted.returncode == 0, promoted.stderr
        converged(service, "2")
        promotion_s = time.monotonic() - begun
        load.wait_for(20)
        begun = time.monotonic()
        rolled_back = service.cli("rollback", MODEL)
        assert rolled_back.returncode == 0, rolled_back.stderr
        converged(service, "1")
        rollback_s = time.monotonic() - begun
        load.wait_for(20)
    _nobody_suffered(load.exchanges, versions={"1", "2"})
    answered = sorted({(each.generation, each.version) for each in load.exchanges})
    assert [version for _, version in answered] == ["1", "2", "1"]
    _figures("swap and rollback", load.exchanges, promoted_in=promotion_s, rolled_back_in=rollback_s)
    # What the commands wrote lies behind the server; what the service reads went over HTTP.
    entries = MlflowRegistry(registry.mlflow.url).versions(MODEL)
    assert [entry.version for entry in entries] == ["1", "2"]
    assert {entry.digest for entry in entries} == {path.name for path in _releases(service)}
    assert len(list(registry.mlflow.artifacts.rglob("manifest.json"))) == 2
    assert not (service.home / "registry").exists()


def _postgres_stopped(registry: Registry) -> Callable[[], None]:
    registry.postgres.end(signal.SIGINT)
    return registry.postgres.start


def _postgres_killed(registry: Registry) -> Callable[[], None]:
    registry.postgres.end()
    return registry.postgres.start


def _server_killed(registry: Registry) -> Callable[[], None]:
    registry.mlflow.end()
    return registry.mlflow.start


OUTAGES = {
    "PostgreSQL stopped": _postgres_stopped,
    "PostgreSQL killed": _postgres_killed,
    "MLflow killed": _server_killed,
}
"""What is taken away, and by the function that it returns given back on the same files and port."""
SAMPLED = ("PostgreSQL killed",)


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, id=what.replace(" ", "-"), marks=[pytest.mark.sample] * (what in SAMPLED)) for what in OUTAGES],
)
def test_an_outage_under_load(service: Service, registry: Registry, what: str) -> None:
    """No request fails; a promotion is refused with the reason, leaves nothing behind, and works after the return."""
    if len(MlflowRegistry(registry.mlflow.url).versions(MODEL)) == 1:
        assert registry.register(2).returncode == 0
    serving = service.rollout()["serving"]
    version = other_version(service)
    with _loaded(service) as load:
        load.wait_for(20)
        give_back = OUTAGES[what](registry)
        away = time.monotonic()
        refused = service.promote(version)
        refused_s = time.monotonic() - away
        assert refused.status_code == 503, refused.text
        assert "registry" in refused.json()["detail"].lower()
        assert int(refused.headers["Retry-After"]) >= 1
        noticed_s = until(lambda: _registry(service)["reachable"] is False, 30.0, "the rollout's notice of the outage")
        while time.monotonic() < away + OUTAGE_S:
            assert httpx.get(f"{service.url}/healthz/ready", timeout=10).status_code == 200
            state = service.rollout()
            assert (state["serving"], state["desired"]) == (serving, serving)
            time.sleep(0.5)  # the outage lasts in real time
        give_back()
        back = time.monotonic()
        again_s = until(lambda: _registry(service)["reachable"] is True, 60.0, "the rollout's notice of the return")
        # Nothing of what was refused happens by itself.
        load.wait_for(20)
        assert service.rollout()["desired"] == serving
        promoted = service.promote(version)
        assert promoted.status_code == 200, promoted.text
        converged(service, version)
        converged_s = time.monotonic() - back
        load.wait_for(20)
    _nobody_suffered(load.exchanges, versions={serving, version})
    _figures(
        what,
        load.exchanges,
        refused_after=refused_s,
        noticed_after=noticed_s,
        reached_again_after=again_s,
        new_version_serves_after=converged_s,
    )


def _registry(service: Service) -> dict[str, Any]:
    state: dict[str, Any] = service.rollout()["registry"]
    return state


def _releases(service: Service) -> list[Any]:
    return [path for path in (service.home / "cache").rglob("*") if path.is_dir() and len(path.name) == 64]
