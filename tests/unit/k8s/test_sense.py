"""What no schema sees is found: privileges, dangling names, open ports, secrets in the open."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from checks import manifests, sense
from k8s_folder import K8S

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = manifests.read(K8S / "base")


def errors_with(kind: str, name: str, change: Callable[[Any], Any]) -> list[str]:
    """Return the errors of our manifests once ``change`` was done to the body of one of them."""
    bodies = [manifests.Manifest(each.source, copy.deepcopy(each.body)) for each in BASE]
    change(next(each.body for each in bodies if (each.kind, each.name) == (kind, name)))
    return sense.check_sense(bodies).errors


def head(body: Any) -> Any:
    """Return the pod specification of a RayService's head."""
    return body["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]


def container(body: Any) -> Any:
    """Return the container of a RayService's head."""
    return head(body)["containers"][0]


def open_to_clients(*ports: int) -> dict[str, Any]:
    """Return an ingress rule that lets clients in."""
    rule: dict[str, Any] = {"from": [{"namespaceSelector": {"matchLabels": {"steelyard.io/client": "true"}}}]}
    return rule | ({"ports": [{"port": port} for port in ports]} if ports else {})


def test_own_manifests_make_sense() -> None:
    """Nothing dangles between the repository's own manifests, and no pod keeps what it does not need."""
    assert sense.check_sense(BASE).errors == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: container(body).update(securityContext={}), "runAsNonRoot"),
        (lambda body: container(body)["securityContext"].update(readOnlyRootFilesystem=False), "readOnlyRoot"),
        (lambda body: container(body)["securityContext"].update(capabilities={"add": ["NET_ADMIN"]}), "capabilities"),
        (lambda body: container(body).update(resources={}), "limits.memory"),
        (lambda body: container(body).pop("readinessProbe"), "readinessProbe"),
        (lambda body: container(body).update(envFrom=[{"configMapRef": {"name": "other"}}]), "ConfigMap other"),
        (lambda body: container(body).update(env=[{"name": "ADMIN_KEY", "value": "abc"}]), "written down"),
        (lambda body: container(body)["volumeMounts"].append({"name": "lost"}), "the volume lost"),
        (lambda body: head(body).pop("automountServiceAccountToken"), "automountServiceAccountToken"),
        (lambda body: head(body)["securityContext"].update(runAsUser=0), "no user but root"),
        (lambda body: head(body)["securityContext"].pop("seccompProfile"), "seccompProfile"),
        (lambda body: head(body)["volumes"].append({"name": "disk", "hostPath": {"path": "/"}}), "folder of the host"),
        (lambda body: head(body)["volumes"].append({"name": "all", "emptyDir": {}}), "no sizeLimit"),
        (lambda body: body["spec"].update(serveConfigV2="applications: [{import_path: 'serve.no:app'}]"), "serve.no"),
        (lambda body: body["spec"].update(serveConfigV2="applications: []"), "no application"),
        (lambda body: body["spec"]["rayClusterConfig"].pop("authOptions"), "authOptions"),
        (
            lambda body: body["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].update(
                redisPassword={"value": "abc"}
            ),
            "redisPassword",
        ),
        (
            lambda body: body["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].update(
                externalStorageNamespace="steelyard"
            ),
            "both clusters",
        ),
        (lambda body: body["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas=9), "not within"),
    ],
)
def test_senseless_ray_service_is_an_error(change: Callable[[Any], Any], words: str) -> None:
    """Each of these would validate, and run with more rights, or not at all."""
    assert any(words in error for error in errors_with("RayService", "steelyard", change))


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("NetworkPolicy", "steelyard", ("spec", "podSelector", "matchLabels")),
        ("NetworkPolicy", "redis", ("spec", "podSelector", "matchLabels")),
        ("PodDisruptionBudget", "steelyard-replicas", ("spec", "selector", "matchLabels")),
        ("Service", "mlflow", ("spec", "selector")),
        ("Deployment", "mlflow", ("spec", "selector", "matchLabels")),
        ("StatefulSet", "postgres", ("spec", "selector", "matchLabels")),
    ],
)
def test_selector_that_finds_nothing_is_an_error(kind: str, name: str, path: tuple[str, ...]) -> None:
    """A policy whose selector matches no pod of ours protects nothing, a service leads nowhere."""

    def change(body: Any) -> None:
        for step in path:
            body = body[step]
        body["app.kubernetes.io/name"] = "steelyerd"

    assert any("finds no pod" in error for error in errors_with(kind, name, change))


@pytest.mark.parametrize("port", sense.RAY_PORTS)
def test_ray_port_open_to_clients_is_an_error(port: int) -> None:
    """Whoever reaches one of these ports runs code in the cluster."""
    found = errors_with(
        "NetworkPolicy", "steelyard", lambda body: body["spec"]["ingress"].append(open_to_clients(port))
    )

    assert any(f"port {port}" in error for error in found)


def test_rule_without_ports_is_an_error() -> None:
    """No list of ports means all of them, Ray's among them."""
    rule = open_to_clients()
    found = errors_with("NetworkPolicy", "steelyard", lambda body: body["spec"]["ingress"].append(rule))

    assert any("without ports" in error for error in found)


def test_namespace_without_a_closing_policy_is_an_error() -> None:
    """The policy that closes all pods is missed where it lets something in."""
    found = errors_with("NetworkPolicy", "nobody", lambda body: body["spec"].update(ingress=[{}]))

    assert any("closes all pods" in error for error in found)


def test_secrets_in_files_are_errors() -> None:
    """Neither a Secret nor a key in a ConfigMap belongs into this folder; the path of a mounted one does."""
    settings = manifests.Manifest("x", {"kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"API_KEY": "abc"}})
    path = manifests.Manifest("x", {"kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"API_KEY": "/etc/key"}})
    secret = manifests.Manifest("x", {"kind": "Secret", "metadata": {"name": "x"}})

    assert any("API_KEY" in error for error in sense.check_sense([settings]).errors)
    assert sense.check_sense([path]).errors == []
    assert any("kubectl" in error for error in sense.check_sense([secret]).errors)
