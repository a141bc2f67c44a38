"""Manifests against their kinds' schemas: each way of being wrong is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from checks import manifests, schemas
from k8s_folder import K8S

if TYPE_CHECKING:
    from pathlib import Path


def manifest_of(file: str, kind: str) -> manifests.Manifest:
    """Return the first manifest of ``kind`` in a file of the folder."""
    text = (K8S / file).read_text(encoding="utf-8")
    return next(each for each in manifests.parse(text, file) if each.kind == kind)


def changed(manifest: manifests.Manifest, path: str, value: Any) -> manifests.Manifest:
    """Change the field at a dotted path of ``manifest``."""
    *parents, last = path.split(".")
    where: Any = manifest.body
    for part in parents:
        where = where[int(part) if part.isdigit() else part]
    where[last] = value
    return manifest


CUSTOM = [
    ("base/rayservice.yaml", "RayService"),
    ("components/prometheus/monitors.yaml", "PodMonitor"),
    ("components/prometheus/monitors.yaml", "ServiceMonitor"),
    ("components/prometheus/alerts.yaml", "PrometheusRule"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("file", "kind"), CUSTOM)
def test_custom_kind_fits_its_definition(file: str, kind: str, crds: Path) -> None:
    """Our resource of each custom kind validates against the definition, and is not skipped."""
    found = schemas.check_schemas([manifest_of(file, kind)], crds)

    assert (found.errors, found.skipped) == ([], [])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "kind", "path", "value"),
    [
        ("base/rayservice.yaml", "RayService", "spec.rayClusterConfig.rayVersoin", "2.60.0"),
        ("base/rayservice.yaml", "RayService", "spec.rayClusterConfig.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        ("base/rayservice.yaml", "RayService", "spec.rayClusterConfig.autoscalerOptions.version", "v3"),
        ("components/prometheus/monitors.yaml", "PodMonitor", "spec.podMetricsEndpoints.0.intervall", "15s"),
        ("components/prometheus/monitors.yaml", "PodMonitor", "spec.podMetricsEndpoints.0.interval", "often"),
        ("components/prometheus/monitors.yaml", "ServiceMonitor", "spec.endpoints", None),
        ("components/prometheus/alerts.yaml", "PrometheusRule", "spec.groups.0.rules.0.for", "soon"),
        ("components/prometheus/alerts.yaml", "PrometheusRule", "spec.groups.0.rules.0.expression", "up"),
    ],
)
def test_broken_custom_resource_is_an_error(file: str, kind: str, path: str, value: Any, crds: Path) -> None:
    """A misspelt field, which Kubernetes would drop silently, a wrong type and a value out of its pattern are found."""
    found = schemas.check_schemas([changed(manifest_of(file, kind), path, value)], crds)

    assert found.errors


@pytest.mark.parametrize(("file", "kind"), CUSTOM)
def test_absent_definition_is_said(file: str, kind: str, tmp_path: Path) -> None:
    """Without its definition a custom resource is reported as skipped."""
    found = schemas.check_schemas([manifest_of(file, kind)], tmp_path)

    assert found.errors == []
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("file", "kind", "path", "value"),
    [
        ("base/networkpolicy.yaml", "NetworkPolicy", "spec.policyType", ["Ingress"]),
        ("base/environment.yaml", "ConfigMap", "data.STEELYARD_PORT", 8000),
        ("base/poddisruptionbudget.yaml", "PodDisruptionBudget", "apiVersion", "policy/v1beta1"),
        ("base/namespace.yaml", "Namespace", "kind", "Namespaze"),
        ("base/mlflow.yaml", "Deployment", "spec.template.spec.containers.0.readinesProbe", {}),
        ("base/redis.yaml", "StatefulSet", "spec.replicas", "one"),
        ("base/postgres.yaml", "Service", "spec.ports.0.port", "postgres"),
    ],
)
def test_broken_core_manifest_is_an_error(file: str, kind: str, path: str, value: Any, tmp_path: Path) -> None:
    """An unknown field, a wrong type, a removed API version and an unknown kind are each found."""
    found = schemas.check_schemas([changed(manifest_of(file, kind), path, value)], tmp_path)

    assert len(found.errors) == 1


def test_what_overlays_hold_alike_is_judged_once(tmp_path: Path) -> None:
    """A mistake in the base is one error, however many overlays repeat it."""
    broken = [changed(manifest_of("base/namespace.yaml", "Namespace"), "kind", "Namespaze") for _ in range(3)]

    assert len(schemas.check_schemas(broken, tmp_path).errors) == 1
