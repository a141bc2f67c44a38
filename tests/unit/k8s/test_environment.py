"""The ConfigMap of the cluster says what the code says: one truth, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve import cluster
from serve.settings import Settings

K8S = Path(__file__).resolve().parents[3] / "k8s"
LAUNCHER = "RAY_SERVE_HAPROXY_BINARY_PATH"


@pytest.fixture(name="data")
def _data(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the ConfigMap's data, and put it into the environment with an admin key as the pods have it."""
    data: dict[str, str] = yaml.safe_load((K8S / "environment.yaml").read_text(encoding="utf-8"))["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "a key")
    return data


def test_settings_are_legal(data: dict[str, str]) -> None:
    """The service starts with the ConfigMap's settings, and every STEELYARD_ variable in it is one of them."""
    settings = Settings()

    assert settings.host == "0.0.0.0"  # noqa: S104 - a pod's clients come from outside of it
    names = {f"STEELYARD_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in data if name.startswith("STEELYARD_")} <= names


def test_ray_variables_are_those_of_the_code(
    data: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's variables equal what the command prints for these settings, the launcher's place in the image aside."""
    monkeypatch.setattr("sys.argv", ["cluster", "--print-env"])
    cluster.main()
    printed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())

    ray = {name: value for name, value in data.items() if not name.startswith("STEELYARD_")}
    assert ray.pop(LAUNCHER) == "/usr/local/bin/steelyard-haproxy"
    assert ray == {n: value for n, value in printed.items() if not n.startswith("STEELYARD_") and n != LAUNCHER}


def test_service_listens_where_the_manifests_say(data: dict[str, str]) -> None:
    """One port in settings, Serve's configuration and the network policy."""
    service = yaml.safe_load((K8S / "rayservice.yaml").read_text(encoding="utf-8"))
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    policy = yaml.safe_load((K8S / "networkpolicy.yaml").read_text(encoding="utf-8"))
    clients = policy["spec"]["ingress"][1]

    assert config["http_options"] == {"host": data["STEELYARD_HOST"], "port": int(data["STEELYARD_PORT"])}
    assert clients["ports"] == [{"protocol": "TCP", "port": int(data["STEELYARD_PORT"])}]


def test_workers_hold_the_replicas(data: dict[str, str]) -> None:
    """The worker group has a pod for every replica, with the cores that one reserves."""
    service = yaml.safe_load((K8S / "rayservice.yaml").read_text(encoding="utf-8"))
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]

    assert workers["replicas"] == int(data["STEELYARD_REPLICAS"])
    assert float(limits["cpu"]) == float(data["STEELYARD_CPUS"])
