"""FakeRegistry: the Registry port in memory, for tests and trials without MLflow."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from models.errors import RegistryError, UnknownModelError, UnknownVersionError
from models.rollout.order import PLAIN, Order
from models.weights.registry import (
    DIGEST_TAG,
    PRODUCTION,
    PROMOTABLE_TAG,
    READY,
    SOURCE_TAG,
    Desired,
    Evaluation,
    VersionInfo,
)
from models.weights.retention import aliased

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.weights.rollout_runs import RolloutRun


class FakeRegistry:
    """Keeps everything in memory; ``down = True`` makes every call fail as an unreachable registry does. Thread-safe.

    files: (model, version) -> name -> bytes, open to tampering. serving: model -> what ``record_serving`` wrote last.
    rollouts: ident -> what ``record_rollout`` wrote.
    """

    def __init__(self) -> None:
        """Start empty and reachable."""
        self.down = False
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.serving: dict[str, tuple[int, str, str]] = {}
        self.rollouts: dict[str, RolloutRun] = {}
        self._versions: dict[str, list[VersionInfo]] = {}
        self._numbers: dict[str, int] = {}
        self._desired: dict[str, tuple[str, str, Order]] = {}
        self._evaluations: dict[tuple[str, str], dict[str, Evaluation]] = {}
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
            wanted = self._desired.get(model, ("", "", PLAIN))[0]
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
            version, promotion, order = self._desired[model]
            info = self.version(model, version)
            return Desired(model, version, info.digest, info.state, promotion, order, info.signature)

    def create_version(
        self,
        model: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        sign: Callable[[str], str] | None = None,
    ) -> VersionInfo:
        """Store ``folder`` as a new version. Raises RegistryError."""
        with self._lock:
            self._reach()
            existing = self._versions.setdefault(model, [])
            number = self._numbers[model] = self._numbers.get(model, 0) + 1
            info = VersionInfo(
                model=model,
                version=str(number),
                digest=tags.get(DIGEST_TAG, ""),
                state=READY,
                promotable=tags.get(PROMOTABLE_TAG, ""),
                source_sha256=tags.get(SOURCE_TAG, ""),
                created=f"1970-01-01T00:00:{number - 1:02d}.000+00:00",
                metrics=dict(metrics),
                signature="" if sign is None else sign(str(number)),
            )
            self.files[model, info.version] = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
            existing.append(info)
            return info

    def sign_version(self, model: str, version: str, signature: str) -> None:
        """Put ``signature`` in place of an earlier one, "" removes it. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            self.version(model, version)
            self._change(model, version, signature=signature)

    def fetch(self, model: str, version: str, destination: Path) -> None:
        """Write the version's files into ``destination``. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            self.version(model, version)
            for name, data in self.files[model, version].items():
                path = destination / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def promote(
        self,
        model: str,
        version: str,
        *,
        promotion: str,
        reason: str,  # noqa: ARG002 - the port's
        order: Order = PLAIN,
    ) -> Desired:
        """Point the production alias at ``version``. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            info = self.version(model, version)
            self._desired[model] = (version, promotion, order)
            return Desired(model, version, info.digest, info.state, promotion, order, info.signature)

    def record_evaluation(self, model: str, version: str, evaluation: Evaluation) -> None:
        """Keep an evaluation in place of an earlier one on the same data. Raises UnknownVersionError, RegistryError."""
        with self._lock:
            self.version(model, version)
            self._evaluations.setdefault((model, version), {})[evaluation.data] = evaluation

    def evaluations(self, model: str, version: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of ``version``, oldest first. Raises UnknownVersionError or RegistryError."""
        with self._lock:
            self.version(model, version)
            found = self._evaluations.get((model, version), {}).values()
            return tuple(sorted(found, key=lambda each: (each.created, each.data)))

    def delete_version(self, model: str, version: str) -> None:
        """Delete a version and its files. Raises UnknownVersionError, ReleaseRejectedError or RegistryError."""
        with self._lock:
            info = self.version(model, version)
            if info.aliases:
                raise aliased(info)
            self._versions[model] = [known for known in self._versions[model] if known.version != version]
            self.files.pop((model, version), None)
            self._evaluations.pop((model, version), None)

    def recorded_serving(self, model: str) -> str | None:
        """Return the version that ``record_serving`` wrote last. Raises RegistryError."""
        with self._lock:
            self._reach()
            found = self.serving.get(model)
            return None if found is None else found[1]

    def record_serving(self, model: str, *, generation: int, version: str, digest: str) -> None:
        """Keep what the fleet has committed. Raises RegistryError."""
        with self._lock:
            self._reach()
            self.serving[model] = (generation, version, digest)

    def record_rollout(self, run: RolloutRun) -> None:
        """Keep a finished rollout, once. Raises RegistryError."""
        with self._lock:
            self._reach()
            self.rollouts.setdefault(run.ident, run)

    def set_state(self, model: str, version: str, state: str) -> None:
        """Overwrite a version's ready tag, as somebody at the store could; "" removes it."""
        with self._lock:
            self._change(model, version, state=state)

    def _change(self, model: str, version: str, **changes: str) -> None:
        self._versions[model] = [
            replace(info, **changes) if info.version == version else info  # type: ignore[arg-type]
            for info in self._versions[model]
        ]

    def _reach(self) -> None:
        if self.down:
            msg = "The registry cannot be reached or refuses; check its address and that it runs, then try again."
            raise RegistryError(msg)
