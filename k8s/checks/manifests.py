"""Kubernetes manifests as they are read from files or from kustomize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where there is one: ten times as fast."""

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Manifest:
    """One YAML document and where it comes from."""

    source: str
    """Name of the file or of the overlay, for messages."""
    body: dict[str, Any]

    @property
    def kind(self) -> str:
        """Return its kind, or an empty string."""
        return str(self.body.get("kind", ""))

    @property
    def name(self) -> str:
        """Return its name, or an empty string."""
        return str(self.body.get("metadata", {}).get("name", ""))

    def __str__(self) -> str:
        """Return source, kind and name, as a message names it."""
        return f"{self.source} {self.kind or '?'}/{self.name or '?'}"


def parse(text: str, source: str) -> list[Manifest]:
    """Return the documents of ``text``. Raises yaml.YAMLError, which names ``source``, for text that is not YAML."""
    try:
        documents = list(yaml.load_all(text, Loader=LOADER))
    except yaml.YAMLError as error:
        msg = f"{source}: {' '.join(str(error).split())}"
        raise yaml.YAMLError(msg) from error
    return [Manifest(source, body) for body in documents if body is not None]


def read(folder: Path) -> list[Manifest]:
    """Return the manifests of ``folder``, kustomization.yaml aside. Raises yaml.YAMLError for text that is not YAML."""
    return [
        manifest
        for file in sorted(folder.glob("*.yaml"))
        if file.name != "kustomization.yaml"
        for manifest in parse(file.read_text(encoding="utf-8"), f"{folder.name}/{file.name}")
    ]


def pod_templates(body: Any) -> Iterator[dict[str, Any]]:
    """Yield every pod template in a manifest, wherever its kind keeps it."""
    if isinstance(body, list):
        for part in body:
            yield from pod_templates(part)
    elif isinstance(body, dict):
        for name, part in body.items():
            if name == "template" and isinstance(part, dict) and "containers" in part.get("spec", {}):
                yield part
            else:
                yield from pod_templates(part)
