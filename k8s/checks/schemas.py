"""Manifests against the schemas of their kinds, strictly: an unknown field is a mistake.

Core kinds are validated against Kubernetes' own schemas, the kinds of KubeRay and of the Prometheus operator against
their custom resource definitions (``data/crds`` in the folder that ``STEELYARD_SHARED`` names; skipped without them).
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import kubernetes_validate

from checks.findings import Findings
from checks.manifests import parse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from checks.manifests import Manifest

OLDEST_KUBERNETES: Final = "1.30"
CRD_FILES: Final = {
    ("ray.io/v1", "RayService"): "ray.io_rayservices.yaml",
    ("monitoring.coreos.com/v1", "PodMonitor"): "monitoring.coreos.com_podmonitors.yaml",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "monitoring.coreos.com_servicemonitors.yaml",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "monitoring.coreos.com_prometheusrules.yaml",
}


def check_schemas(manifests: Iterable[Manifest], crds: Path) -> Findings:
    """Return what each manifest's schema says of it; one that several overlays hold alike is judged once."""
    found = Findings()
    judged: set[str] = set()
    for manifest in manifests:
        content = json.dumps(manifest.body, sort_keys=True, default=str)
        if content in judged:
            continue
        judged.add(content)
        version = manifest.body.get("apiVersion", "")
        crd = CRD_FILES.get((version, manifest.kind))
        if crd is None:
            found.errors += _core_errors(manifest, version)
        elif not (crds / crd).is_file():
            found.skipped.append(f"{manifest}: its definition {crd} is not here; STEELYARD_SHARED names its folder")
        else:
            schema = crd_schema(crds / crd, version.partition("/")[2])
            problems = jsonschema.Draft202012Validator(schema).iter_errors(manifest.body)
            found.errors += [f"{manifest}: {each.json_path}: {each.message}" for each in problems]
    return found


def _core_errors(manifest: Manifest, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(manifest.body, OLDEST_KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{manifest}: Kubernetes {OLDEST_KUBERNETES} has no such kind in {version or 'no version'}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest}: {'.'.join(str(part) for part in error.path)}: {error.message}"]
    return []


@functools.cache
def crd_schema(file: Path, version: str) -> dict[str, Any]:
    """Return the JSON schema that a CustomResourceDefinition gives for ``version``, closed against unknown fields."""
    [definition] = (manifest.body for manifest in parse(file.read_text(encoding="utf-8"), file.name))
    schema: dict[str, Any] = next(
        entry["schema"]["openAPIV3Schema"] for entry in definition["spec"]["versions"] if entry["name"] == version
    )
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    """Forbid unknown fields throughout; Kubernetes would drop them silently (structural schemas are pruned)."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    elif isinstance(schema, dict):
        if (
            isinstance(schema.get("properties"), dict)
            and "additionalProperties" not in schema
            and not schema.get("x-kubernetes-preserve-unknown-fields")
        ):
            schema["additionalProperties"] = False
        for part in schema.values():
            _close(part)
