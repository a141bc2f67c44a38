"""The registry is away, answers nonsense or has lost what serves: clients notice nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import httpx
import pytest
import running
from clients import Clients
from outage import registry_down
from planting import move_alias
from store import ArtifactStore
from verdicts import converged, nobody_suffered, other_version

from models.errors import RegistryError
from models.weights.mlflow_registry import MlflowRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service

NONSENSE = {
    "an empty object": (200, "application/json", b"{}"),
    "an empty list": (200, "application/json", b"[]"),
    "null": (200, "application/json", b"null"),
    "no bytes": (200, "application/json", b""),
    "half an answer": (200, "application/json", b'{"registered_model": {"name": "checkout", "aliases": [{"ali'),
    "another's answer": (200, "application/json", b'{"registered_model": {"name": 7, "aliases": 3, "tags": "x"}}'),
    "a login page": (200, "text/html", b"<html><body>Please log in</body></html>"),
    "a server error": (500, "text/html", b"<html>Internal Server Error</html>"),
    "a gateway's excuse": (503, "application/json", b'{"message": "try again later"}'),
}


@pytest.mark.sample
def test_fault_01_registry_down_at_runtime(service: Service) -> None:
    """Answers go on and probes stay green; a promotion is refused with the reason; the alias is followed afterwards."""
    version = other_version(service)
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(0)
        with registry_down(service):
            refused = service.promote(version)
            assert refused.status_code == 503, refused.text
            assert "registry" in refused.json()["detail"].lower()
            away_until = time.monotonic() + 6.0
            while time.monotonic() < away_until:
                assert httpx.get(f"{service.url}/healthz/ready", timeout=10).status_code == 200
                assert service.rollout()["state"] in {"serving", "probation"}
                time.sleep(0.5)  # twelve polls of the registry fail in real time
        move_alias(service, version, "-after-the-outage")
        converged(service, version, within_s=45.0)
    nobody_suffered(load)


def test_fault_02_registry_down_at_cold_start(service: Service, tmp_path: Path) -> None:
    """A new service without a registry answers with what was committed last, out of its cache."""
    version = other_version(service)
    service.settle(version)
    home = tmp_path / "home"
    for folder in ("cache", "committed"):
        shutil.copytree(service.home / folder, home / folder)
    nobody = f"http://127.0.0.1:{running.free_port()}"
    cold = running.start(home, tmp_path / "cold.log", "--replicas", "1", STEELYARD_REGISTRY_URI=nobody)
    try:
        answer = cold.detect()
        assert answer["metadata"]["version"] == version
        assert answer["images"][0]["results"]
        assert cold.promote("1").status_code == 503
    finally:
        running.stop(cold)


def test_fault_02_registry_down_at_cold_start_without_a_cache(tmp_path: Path) -> None:
    """Where nothing is left to serve, the start ends soon, with a sentence that names the registry."""
    nobody = f"http://127.0.0.1:{running.free_port()}"
    variables = os.environ | {
        "STEELYARD_HOME": str(tmp_path / "home"),
        "STEELYARD_PORT": str(running.free_port()),
        "STEELYARD_REGISTRY_URI": nobody,
    }
    ended = subprocess.run(
        [running.STEELYARD, "serve"], env=variables, capture_output=True, text=True, timeout=90, check=False
    )
    assert ended.returncode not in (0, None)
    assert "registry cannot be reached" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.sample
@pytest.mark.parametrize("kind", NONSENSE, ids=lambda kind: kind.replace(" ", "-"))
def test_fault_23_registry_answers_nonsense(tmp_path: Path, kind: str) -> None:
    """Every answer that is none is an unreachable registry, never an alias that names nothing or something else."""
    with ArtifactStore(tmp_path) as server:
        server.reply = NONSENSE[kind]
        registry = MlflowRegistry(server.address)
        with pytest.raises(RegistryError):
            registry.desired("checkout")
        with pytest.raises(RegistryError):
            registry.fetch("checkout", "1", tmp_path)
        with pytest.raises(RegistryError):
            registry.promote("checkout", "1", promotion="p", reason="test")
