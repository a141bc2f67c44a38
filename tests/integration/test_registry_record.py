"""What operators find in the registry and hear of it: runs of rollouts, its age, a start without it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import running

from models.weights.manifest import ONNX
from models.weights.mlflow_runs import EXPERIMENT

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service


def _rollouts(service: Service) -> list[dict[str, Any]]:
    """Return the parameters of the runs of rollouts that the service's registry holds, newest first."""
    client: Any = service.registry()._connection.connect()  # type: ignore[attr-defined]
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return [] if experiment is None else [run.data.params for run in client.search_runs([experiment.experiment_id])]


def test_a_promotion_becomes_a_run_in_mlflow_and_the_registrys_age_a_metric(service: Service) -> None:
    """Soon after its commit, with who asked for it; the age is about that of the last poll."""
    service.settle("1")
    assert service.promote("2").status_code == 200
    service.settle("2")
    generation = str(service.rollout()["generation"])
    deadline, found = time.monotonic() + 30.0, []
    while time.monotonic() < deadline and not found:
        found = [run for run in _rollouts(service) if run["generation"] == generation]
        time.sleep(0.5)  # the service under test lives in real time
    (run,) = found
    assert (run["from_version"], run["version"], run["result"], run["who"]) == ("1", "2", "committed", "operator")
    registry = service.rollout()["registry"]
    assert registry["reachable"]
    assert registry["age_s"] < 20.0
    ready = {"status": "ready", "registry": "reachable"}
    while time.monotonic() < deadline and httpx.get(f"{service.url}/healthz/ready", timeout=10).json() != ready:
        time.sleep(0.5)  # a replica asks the rollout at most every other second
    assert httpx.get(f"{service.url}/healthz/ready", timeout=10).json() == ready
    age = None
    while time.monotonic() < deadline and age is None:
        lines = httpx.get(f"{service.url}/metrics", timeout=30).text.splitlines()
        age = next((float(line.split()[-1]) for line in lines if line.startswith("ray_steelyard_registry_age")), None)
        time.sleep(0.5)  # the node reports its metrics every few seconds
    assert age is not None
    assert age < 60.0


@pytest.mark.long
def test_a_start_without_the_registry_says_so_and_one_with_a_damaged_copy_names_it(
    service: Service, tmp_path: Path
) -> None:
    """What serves comes from the cache; where that is damaged, too, the start ends soon and says what to do."""
    version = service.rollout()["serving"]
    home = tmp_path / "home"
    for folder in ("cache", "committed"):
        shutil.copytree(service.home / folder, home / folder)
    nobody = f"http://127.0.0.1:{running.free_port()}"
    cold = running.start(home, tmp_path / "cold.log", "--replicas", "1", STEELYARD_REGISTRY_URI=nobody)
    try:
        deadline, note = time.monotonic() + 30.0, None
        while time.monotonic() < deadline and note is None:
            note = httpx.get(f"{cold.url}/healthz/ready", timeout=10).json().get("registry")
            time.sleep(0.5)  # the first reading of the alias takes its time to fail
        assert note == f"unreachable since start; serving version {version} from the cache"
        assert cold.detect()["metadata"]["version"] == version
    finally:
        running.stop(cold)
    for graph in (home / "cache" / "releases").rglob(ONNX):
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    variables = os.environ | {"STEELYARD_HOME": str(home), "STEELYARD_PORT": str(running.free_port())}
    ended = subprocess.run(
        [running.STEELYARD, "serve"],
        env=variables | {"STEELYARD_REGISTRY_URI": nobody},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode not in (0, None)
    for words in (f"copy of version {version} of checkout", "digest differs", "cannot be reached", "from a backup"):
        assert words in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
