"""Small whole releases for the tests that move them about: a graph that nobody runs, and its manifest."""

from __future__ import annotations

import hashlib

from models.types import Thresholds
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source


def release_files(number: int, model: str = "m") -> tuple[str, dict[str, bytes]]:
    """Return the digest and the files, by name, of a release that differs from those of other numbers."""
    graph = f"graph {number}".encode()
    manifest = Manifest(
        model=model,
        task="detect",
        names=("a", "b"),
        stride=32,
        imgsz=320,
        head="end2end",
        dynamic=True,
        thresholds=Thresholds(),
        files={ONNX: FileEntry(hashlib.sha256(graph).hexdigest(), len(graph))},
        source=Source(f"{number:064d}", 7, "pt"),
        libraries={},
        golden=(),
        metrics={},
        parity={},
    )
    return manifest.digest, {ONNX: graph, MANIFEST: manifest.to_bytes()}
