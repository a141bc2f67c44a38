"""FakeRegistry: the Registry port in memory, for tests and trials without MLflow."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from models.errors import RegistryError, UnknownModelError, UnknownVersionError
from models.weights.registry import (
    DIGEST_TAG,
    PRODUCTION,
    PROMOTABLE_TAG,
    READY,
    SOURCE_TAG,
    Desired,
    VersionInfo,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class FakeRegistry:
    """Keeps everything in memory; ``down = True`` makes every call fail as an unreachable registry does. Thread-safe.

    files: (model, version) -> name -> bytes, open to tampering. serving: model -> what ``record_serving`` wrote last.
    """

    def __init__(self) -> None:
        """Start empty and reachable."""
        self.down = False
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.serving: dict[str, tuple[int, str, str]] = {}
        self._versions: dict[str, list[VersionInfo]] = {}
        self._desired: dict[str, tuple[str, str]] = {}
        self._lock = threading.RLock()

    def models(self) -> list[str]:
        """Return the names of all registered models, sorted. Raises RegistryError."""
        with self._lock:
            self._reach()
            return sorted(self._versions)

    def versions(self, model: str) -> list[VersionInfo]:
        """Return all versions, oldest first. Raises UnknownModelError or RegistryError."""
        with self._lock:
            self._reach()
            if model not in self._versions:
                msg = f"The registry holds no model named {model}; register weights for it first."
                raise UnknownModelError(msg)
            wanted = self._desired.get(model, ("", ""))[0]
            return [
                replace(info, aliases=(PRODUCTION,) if info.version == wanted else ()) for info in self._versions[model]
            ]

    def version(self, model: str, version: str) -> VersionInfo:
        """Return one version. Raises UnknownModelError, UnknownVersionError or RegistryError."""
        for info in self.versions(model):
            if info.version == version:
                return info
        msg = f"The registry holds no version {version} of {model}; list the versions and choose one."
        raise UnknownVersionError(msg)

    def desired(self, model: str) -> Desired | None:
        """Return what the production alias names, or None. Raises RegistryError."""
        with self._lock:
            self._reach()
            if model not in self._desired:
                return None
            version, promotion = self._desired[model]
            info = self.version(model, version)
            return Desired(model, version, info.digest, info.state, promotion)

    def create_version(
        self, model: str, folder: Path, *, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> VersionInfo:
        """Store ``folder`` as a new version. Raises RegistryError."""
        with self._lock:
            self._reach()
            existing = self._versions.setdefault(model, [])
            info = VersionInfo(
                model=model,
                version=str(len(existing) + 1),
                digest=tags.get(DIGEST_TAG, ""),
                state=READY,
                promotable=tags.get(PROMOTABLE_TAG, ""),
                source_sha256=tags.get(SOURCE_TAG, ""),
                created=f"1970-01-01T00:00:{len(existing):02d}.000+00:00",
                metrics=dict(metrics),
            )
            self.files[model, info.version] = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
            existing.append(info)
            return info

    def fetch(self, model: str, version: str, destination: Path) -> None:
        """Write the version's files into ``destination``. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            self.version(model, version)
            for name, data in self.files[model, version].items():
                path = destination / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def promote(self, model: str, version: str, *, promotion: str, reason: str) -> Desired:  # noqa: ARG002 - the port's
        """Point the production alias at ``version``. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            info = self.version(model, version)
            self._desired[model] = (version, promotion)
            return Desired(model, version, info.digest, info.state, promotion)

    def record_serving(self, model: str, *, generation: int, version: str, digest: str) -> None:
        """Keep what the fleet has committed. Raises RegistryError."""
        with self._lock:
            self._reach()
            self.serving[model] = (generation, version, digest)

    def set_state(self, model: str, version: str, state: str) -> None:
        """Overwrite a version's ready tag, as somebody at the store could; "" removes it."""
        with self._lock:
            self._versions[model] = [
                replace(info, state=state) if info.version == version else info for info in self._versions[model]
            ]

    def _reach(self) -> None:
        if self.down:
            msg = "The registry cannot be reached or refuses; check its address and that it runs, then try again."
            raise RegistryError(msg)
