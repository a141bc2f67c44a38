"""Releases that may not serve are refused at the right step, and the version that serves goes on."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
import pytest
from clients import Clients
from onnx import numpy_helper
from running import audit

from models.weights import registry as tags
from models.weights.manifest import MANIFEST, ONNX
from serve.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from running import Service

    from models.weights.registry import VersionInfo


def _plant(service: Service, folder: Path, **manifest_changes: Any) -> VersionInfo:
    """Put ``folder`` into the registry as a ready version with digests that fit its files."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest |= manifest_changes
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    (folder / MANIFEST).write_bytes(canonical)
    digest = hashlib.sha256(canonical).hexdigest()
    return service.registry().create_version(
        "checkout",
        folder,
        tags={tags.DIGEST_TAG: digest, tags.SOURCE_TAG: digest, tags.PROMOTABLE_TAG: "true"},
        metrics={},
    )


def _edit_weights(folder: Path, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], *, last: int) -> None:
    """Change the ``last`` float tensors of the network, or all of them for 0."""
    network = onnx.load_from_string((folder / ONNX).read_bytes())
    floats = [t for t in network.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    for tensor in floats[-last:]:
        array = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    (folder / ONNX).write_bytes(network.SerializeToString())


def _stored_onnx(service: Service, before: set[Path]) -> Path:
    (path,) = set(service.home.rglob(ONNX)) - before
    return path


def _nan_weights(service: Service, folder: Path) -> VersionInfo:
    _edit_weights(folder, lambda array: np.full_like(array, np.nan), last=0)
    return _plant(service, folder)


def _zeroed_head(service: Service, folder: Path) -> VersionInfo:
    _edit_weights(folder, np.zeros_like, last=24)
    return _plant(service, folder)


def _byte_lost(service: Service, folder: Path) -> VersionInfo:
    before = set(service.home.rglob(ONNX))
    planted = _plant(service, folder, metrics={"planted": 1.0})
    path = _stored_onnx(service, before)
    path.write_bytes(path.read_bytes()[:-1])
    return planted


def _bit_flipped(service: Service, folder: Path) -> VersionInfo:
    before = set(service.home.rglob(ONNX))
    planted = _plant(service, folder, metrics={"planted": 2.0})
    path = _stored_onnx(service, before)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return planted


def _no_classes(service: Service, folder: Path) -> VersionInfo:
    return _plant(service, folder, names=[])


def _not_ready(service: Service, folder: Path) -> VersionInfo:
    planted = _plant(service, folder, metrics={"planted": 3.0})
    uri = load_settings(home=service.home).tracking_uri
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.delete_model_version_tag("checkout", planted.version, tags.STATE_TAG)
    return planted


def _move_alias(service: Service, version: str) -> None:
    """Promote behind the service's back, as somebody with access to the registry could."""
    service.registry().promote("checkout", version, promotion=f"planted-{version}", reason="planted by a test")


PLANTED = {
    "NaN weights": (_nan_weights, "warm", "finite|blind|NaN"),
    "a zeroed head": (_zeroed_head, "golden", "golden|blind|box"),
    "one byte lost": (_byte_lost, "verify", "bytes instead of"),
    "one bit flipped": (_bit_flipped, "verify", "digest differs"),
    "no classes": (_no_classes, "contract", "no classes"),
    "a missing ready tag": (_not_ready, "fetch", "ready"),
}


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.replace(" ", "-"))
def test_a_bad_release_planted_in_the_store_is_refused(service: Service, tmp_path: Path, kind: str) -> None:
    """The refusal names step and reason, happens once, and no client notices anything."""
    plant, step, reason = PLANTED[kind]
    service.settle("1")
    before = service.rollout()
    service.registry().fetch("checkout", "1", tmp_path)
    planted = plant(service, tmp_path)
    with Clients(service.url, service.tray, count=2) as load:
        _move_alias(service, planted.version)
        rollout = service.wait_until(lambda r: r["state"] == "rejected")
        load.wait_for(before["generation"])
        # Several more polls: a refusal that is retried in a loop would show in the audit.
        seen = len(load.exchanges)
        while len(load.exchanges) < seen + 40:
            load.wait_for(before["generation"])
    assert rollout["step"] == step
    assert any(word in rollout["reason"] for word in reason.split("|")), rollout["reason"]
    assert rollout["serving"] == "1"
    assert rollout["desired"] == planted.version
    assert {(e.status, e.version) for e in load.exchanges} == {(200, "1")}
    refused = [r for r in audit(service) if r["result"] == "rejected" and r["to"]["version"] == planted.version]
    # A version that is not ready does not exist for the fleet: nothing was tried, so there is nothing to write down.
    assert len(refused) == (0 if kind == "a missing ready tag" else 1)
    shown = service.cli("rollout", "checkout", "--json")
    assert rollout["reason"] in json.loads(shown.stdout)["reason"]


def test_promoting_a_bad_release_fails_with_its_reason(service: Service, tmp_path: Path) -> None:
    """``steelyard promote`` of a blind version ends with exit code 1 and says why on standard error."""
    service.settle("1")
    service.registry().fetch("checkout", "2", tmp_path)
    _edit_weights(tmp_path, np.zeros_like, last=24)
    planted = _plant(service, tmp_path, metrics={"planted": 4.0})
    promoted = service.cli("promote", "checkout", planted.version)
    assert promoted.returncode == 1
    assert "golden" in promoted.stderr
    assert service.detect()["metadata"]["version"] == "1"
    service.settle("1")
