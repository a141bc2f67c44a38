"""Puts releases into a running service's registry that nobody would register: changed, damaged, or stored elsewhere."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnx
from onnx import numpy_helper

from models.weights import registry as tags
from models.weights.manifest import MANIFEST, ONNX
from serve.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from running import Service

    from models.weights.registry import VersionInfo

MODEL = "checkout"


def rewrite_manifest(folder: Path, **changes: Any) -> str:
    """Let the manifest in ``folder`` name the files as they are now; return the release's digest."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest |= changes
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    (folder / MANIFEST).write_bytes(canonical)
    return hashlib.sha256(canonical).hexdigest()


def labels(digest: str) -> dict[str, str]:
    """Return the tags of a version that may be promoted."""
    return {tags.DIGEST_TAG: digest, tags.SOURCE_TAG: digest, tags.PROMOTABLE_TAG: "true"}


def plant(service: Service, folder: Path, **manifest_changes: Any) -> VersionInfo:
    """Put ``folder`` into the registry as a ready version with digests that fit its files."""
    digest = rewrite_manifest(folder, **manifest_changes)
    return service.registry().create_version(MODEL, folder, tags=labels(digest), metrics={})


def copy_of(service: Service, version: str, folder: Path, mark: float) -> VersionInfo:
    """Register ``version`` once more under another digest, so that it must be fetched and loaded anew."""
    folder.mkdir(parents=True, exist_ok=True)
    service.registry().fetch(MODEL, version, folder)
    return plant(service, folder, metrics={"planted": mark})


def plant_at(service: Service, source: str, digest: str) -> str:
    """Register a version whose files lie at the URL ``source``; return its number."""
    client = registry_client(service)
    entry = client.create_model_version(MODEL, source=source, tags=labels(digest))
    client.set_model_version_tag(MODEL, str(entry.version), tags.STATE_TAG, tags.READY)
    return str(entry.version)


def registry_client(service: Service) -> Any:
    """Return MLflow's own client of the service's registry, for what Steelyard never does."""
    uri = load_settings(home=service.home).tracking_uri
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def move_alias(service: Service, version: str, mark: str = "") -> None:
    """Promote behind the service's back, as somebody with access to the registry could."""
    service.registry().promote(MODEL, version, promotion=f"planted-{version}{mark}", reason="planted by a test")


def edit_weights(folder: Path, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], *, last: int) -> None:
    """Change the ``last`` float tensors of the network, or all of them for 0."""
    network = onnx.load_from_string((folder / ONNX).read_bytes())
    floats = [t for t in network.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    for tensor in floats[-last:]:
        array = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    (folder / ONNX).write_bytes(network.SerializeToString())
