"""The checker of the Kubernetes manifests: passes ours, and fails each kind of broken one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"


def load_check() -> ModuleType:
    """Import the script under test by its path: it is no package."""
    spec = importlib.util.spec_from_file_location("k8s_check", K8S / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while they are made.
    sys.modules["k8s_check"] = module
    spec.loader.exec_module(module)
    return module


check = load_check()


def copy(folder: Path, name: str, **changes: Any) -> Path:
    """Write the one document of manifest ``name`` into ``folder`` with ``changes`` at dotted paths."""
    body = yaml.safe_load((K8S / name).read_text(encoding="utf-8"))
    for path, value in changes.items():
        *parents, last = path.split("__")
        where = body
        for part in parents:
            where = where[int(part) if part.isdigit() else part]
        where[last] = value
    (folder / name).write_text(yaml.safe_dump(body), encoding="utf-8")
    return folder


def crds() -> Path:
    """Return the folder of the custom resource definitions, or skip where it is absent."""
    shared = Path(os.environ.get("STEELYARD_SHARED", "../shared"))
    folder = (shared if shared.is_absolute() else ROOT / shared) / "data" / "crds"
    if not folder.is_dir():
        pytest.skip("the custom resource definitions are not here; STEELYARD_SHARED names their folder")
    return folder


def test_own_manifests_fit_their_schemas() -> None:
    """Every manifest of the repository validates; the RayService is skipped only where its definition is absent."""
    errors, _ = check.check_schemas(check.read(K8S), ROOT / "nowhere")

    assert errors == []


@pytest.mark.shared
def test_own_ray_service_fits_kuberay() -> None:
    """The RayService validates against KubeRay's own definition."""
    manifests = [manifest for manifest in check.read(K8S) if manifest.body["kind"] == "RayService"]

    assert len(manifests) == 1
    assert check.check_schemas(manifests, crds()) == ([], [])


@pytest.mark.shared
def test_unknown_field_of_ray_service_is_an_error(tmp_path: Path) -> None:
    """A misspelt field, which Kubernetes would drop silently, is found."""
    copy(tmp_path, "rayservice.yaml", spec__rayClusterConfig__rayVersoin="2.60.0")

    errors, _ = check.check_schemas(check.read(tmp_path), crds())

    assert len(errors) == 1
    assert "rayVersoin" in errors[0]


@pytest.mark.shared
def test_wrong_type_in_ray_service_is_an_error(tmp_path: Path) -> None:
    """Ray start parameters are strings: an unquoted number is found."""
    copy(tmp_path, "rayservice.yaml", spec__rayClusterConfig__headGroupSpec__rayStartParams={"num-cpus": 0})

    errors, _ = check.check_schemas(check.read(tmp_path), crds())

    assert len(errors) == 1
    assert "not of type 'string'" in errors[0]


def test_absent_definition_is_said(tmp_path: Path) -> None:
    """Without the definition the RayService is reported as skipped, not as good."""
    copy(tmp_path, "rayservice.yaml")

    errors, skipped = check.check_schemas(check.read(tmp_path), tmp_path)

    assert errors == []
    assert "STEELYARD_SHARED" in skipped[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("networkpolicy.yaml", {"spec__policyType": ["Ingress"]}),
        ("environment.yaml", {"data": {"STEELYARD_PORT": 8000}}),
        ("poddisruptionbudget.yaml", {"apiVersion": "policy/v1beta1"}),
        ("namespace.yaml", {"kind": "Namespaze"}),
    ],
)
def test_broken_core_manifest_is_an_error(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    """An unknown field, a wrong type, a removed API version and an unknown kind are each found."""
    errors, _ = check.check_schemas(check.read(copy(tmp_path, name, **changes)), tmp_path)

    assert len(errors) == 1


CONTAINER = "spec__rayClusterConfig__headGroupSpec__template__spec__containers__0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{CONTAINER}__securityContext": {}}, "runAsNonRoot"),
        ({f"{CONTAINER}__resources": {}}, "limits.memory"),
        ({f"{CONTAINER}__envFrom": [{"configMapRef": {"name": "other"}}]}, "ConfigMap other"),
        ({f"{CONTAINER}__env": [{"name": "STEELYARD_ADMIN_KEY", "value": "abc"}]}, "written down"),
        ({"spec__serveConfigV2": "applications: [{import_path: 'serve.nothing:app'}]"}, "serve.nothing:app"),
        ({"spec__serveConfigV2": "applications: []"}, "no application"),
    ],
)
def test_senseless_ray_service_is_an_error(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """What no schema sees is found: privileges, missing limits, dangling names, a secret in the open."""
    copy(tmp_path, "environment.yaml")
    copy(tmp_path, "rayservice.yaml", **changes)

    assert any(words in error for error in check.check_sense(check.read(tmp_path)))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("networkpolicy.yaml", "spec__podSelector__matchLabels"),
        ("poddisruptionbudget.yaml", "spec__selector__matchLabels"),
    ],
)
def test_selector_that_finds_nothing_is_an_error(tmp_path: Path, name: str, path: str) -> None:
    """A policy whose selector matches no pod of ours protects nothing, and is found."""
    copy(tmp_path, "rayservice.yaml")
    copy(tmp_path, name, **{path: {"app": "steelyerd"}})

    assert any("finds no pod" in error for error in check.check_sense(check.read(tmp_path)))


def test_own_manifests_make_sense() -> None:
    """Nothing dangles between the repository's own manifests."""
    assert check.check_sense(check.read(K8S)) == []


def test_own_dockerfile_is_clean() -> None:
    """Hadolint finds nothing in our Dockerfile."""
    errors, skipped = check.check_dockerfile(K8S / "Dockerfile")
    if skipped:
        pytest.skip(skipped[0])

    assert errors == []


def test_bad_dockerfile_is_an_error(tmp_path: Path) -> None:
    """An unpinned base and a `cd` are reported."""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && ls\n", encoding="utf-8")
    errors, skipped = check.check_dockerfile(tmp_path / "Dockerfile")
    if skipped:
        pytest.skip(skipped[0])

    assert any("DL3007" in error for error in errors)


def test_main_fails_on_a_broken_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code that `make check` sees is 1, and stderr names the file."""
    shutil.copy(K8S / "namespace.yaml", tmp_path)
    copy(tmp_path, "poddisruptionbudget.yaml", spec__maxUnavailible=1)

    assert check.main([str(tmp_path)]) == 1
    assert "poddisruptionbudget.yaml" in capsys.readouterr().err


def test_main_fails_on_an_empty_folder(tmp_path: Path) -> None:
    """A folder without manifests is a mistake, not a success."""
    assert check.main([str(tmp_path)]) == 1
