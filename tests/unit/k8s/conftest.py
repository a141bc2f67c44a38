"""What the tests of the checks share: the folder itself, and copies of it to break."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"

# The checks are scripts beside the files that they check, and no part of the package.
sys.path.insert(0, str(K8S))
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """Return a copy of the folder, to break something in it."""
    kept = shutil.ignore_patterns("__pycache__", "secrets", "*.png")
    return Path(shutil.copytree(K8S, tmp_path / "k8s", ignore=kept))


@pytest.fixture(name="crds")
def _crds() -> Path:
    """Return the folder of the custom resource definitions, or skip where it is absent."""
    shared = Path(os.environ.get("STEELYARD_SHARED", "../shared"))
    folder = (shared if shared.is_absolute() else ROOT / shared) / "data" / "crds"
    if not folder.is_dir():
        pytest.skip("the custom resource definitions are not here; STEELYARD_SHARED names their folder")
    return folder
