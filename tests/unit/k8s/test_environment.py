"""The ConfigMap of the cluster says what the code says: one truth, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import dockerfile

from serve import cluster
from serve.app import LONGEST_DRAIN_S
from serve.environment import BACKSTOP_S, DRAIN_S
from serve.settings import Settings

K8S = Path(__file__).resolve().parents[3] / "k8s"
LAUNCHER = "RAY_SERVE_HAPROXY_BINARY_PATH"


@pytest.fixture(name="data")
def _data(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the ConfigMap's data, and put it into the environment as the pods have it."""
    data: dict[str, str] = yaml.safe_load((K8S / "base" / "environment.yaml").read_text(encoding="utf-8"))["data"]
    for name, value in data.items():
        monkeypatch.setenv(name, value)
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
    service = yaml.safe_load((K8S / "base" / "rayservice.yaml").read_text(encoding="utf-8"))
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    policies = yaml.safe_load_all((K8S / "base" / "networkpolicy.yaml").read_text(encoding="utf-8"))
    rules = next(each for each in policies if each["metadata"]["name"] == "steelyard")["spec"]["ingress"]
    clients = next(rule for rule in rules if "steelyard.io/client" in str(rule))

    assert config["http_options"]["host"] == data["STEELYARD_HOST"]
    assert config["http_options"]["port"] == int(data["STEELYARD_PORT"])
    assert config["http_options"]["request_timeout_s"] == Settings().request_timeout_s + BACKSTOP_S
    assert clients["ports"] == [{"protocol": "TCP", "port": int(data["STEELYARD_PORT"])}]


def test_keys_are_where_the_pods_have_them(data: dict[str, str]) -> None:
    """Every Ray pod mounts the Secret of the keys at the folder of the setting, read-only."""
    mounted = [
        (mount["mountPath"], mount["readOnly"], volumes["access"]["secret"]["secretName"])
        for _, spec in pods()
        for volumes in [{volume["name"]: volume for volume in spec["volumes"]}]
        for mount in spec["containers"][0]["volumeMounts"]
        if mount["name"] == "access"
    ]

    assert mounted == [(str(Path(data["STEELYARD_ACCESS_FILE"]).parent), True, "steelyard-access")] * 2


@pytest.mark.parametrize("overlay", [None, "gpu", "dev"])
def test_workers_hold_the_replicas(data: dict[str, str], overlay: str | None) -> None:
    """The worker group may have a pod for every replica, with the cores and GPUs that one reserves."""
    workers = worker_group()
    if overlay is not None:
        folder = K8S / "overlays" / overlay
        patches = yaml.safe_load_all((folder / "environment.yaml").read_text(encoding="utf-8"))
        data = data | next(each["data"] for each in patches if each["metadata"]["name"] == "steelyard")
        for patch in yaml.safe_load((folder / "workers.yaml").read_text(encoding="utf-8")):
            workers[patch["path"].rpartition("/")[2]] = patch["value"]
    limits = workers.get("resources", workers["template"]["spec"]["containers"][0]["resources"])["limits"]

    assert workers["minReplicas"] == workers["replicas"] == int(data["STEELYARD_MIN_REPLICAS"])
    assert workers["maxReplicas"] == int(data["STEELYARD_MAX_REPLICAS"])
    assert float(limits["cpu"]) == float(data["STEELYARD_CPUS"])
    assert float(limits.get("nvidia.com/gpu", 0)) == float(data.get("STEELYARD_GPUS", 0))


def test_a_stopping_pod_has_time_for_its_last_answers(data: dict[str, str]) -> None:
    """The pod may last as long as its farewell, a replica's longest answer and HAProxy's last word."""
    spec = dict(pods())["replicas"]
    farewell = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]

    assert spec["terminationGracePeriodSeconds"] > float(data["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])
    assert spec["terminationGracePeriodSeconds"] > LONGEST_DRAIN_S + DRAIN_S + 30
    assert "ray drain-node" in farewell


def test_what_may_be_written_is_what_the_image_declares() -> None:
    """The pods mount a folder at each VOLUME of the image, and their tree is read-only otherwise."""
    declared = dockerfile.read_stages((K8S / "Dockerfile").read_text(encoding="utf-8"))["cpu"].words("VOLUME")

    for _, spec in pods():
        scratch = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
        mounts = spec["containers"][0]["volumeMounts"]
        assert {mount["mountPath"] for mount in mounts if mount["name"] in scratch} == set(declared)
        assert spec["securityContext"]["runAsUser"] == 10001


def worker_group() -> dict[str, Any]:
    """Return the worker group of the RayService."""
    service = yaml.safe_load((K8S / "base" / "rayservice.yaml").read_text(encoding="utf-8"))
    group: dict[str, Any] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return group


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Return name and specification of the pods of the RayService: the head's and a replica's."""
    service = yaml.safe_load((K8S / "base" / "rayservice.yaml").read_text(encoding="utf-8"))
    cluster = service["spec"]["rayClusterConfig"]
    return [
        ("head", cluster["headGroupSpec"]["template"]["spec"]),
        ("replicas", cluster["workerGroupSpecs"][0]["template"]["spec"]),
    ]
