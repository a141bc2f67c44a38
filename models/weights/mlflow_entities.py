"""What MLflow's entities and tags mean: pure translations between MLflow's terms and the Registry port's."""

from __future__ import annotations

import contextlib
import getpass
import json
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from models.weights.registry import (
    DIGEST_TAG,
    PRODUCTION,
    PROMOTABLE_TAG,
    SOURCE_TAG,
    STATE_TAG,
    VersionInfo,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

METRIC_TAG = "steelyard.metrics"


def aliases_of(registered: Any) -> dict[str, tuple[str, ...]]:
    """Return version -> its aliases: a search of versions leaves them out."""
    found: dict[str, tuple[str, ...]] = {}
    for alias, version in sorted(dict(registered.aliases).items()):
        found[str(version)] = (*found.get(str(version), ()), str(alias))
    return found


def alias_target(registered: Any) -> str | None:
    """Return the version that the production alias names, or None."""
    version = dict(registered.aliases).get(PRODUCTION)
    return None if version is None else str(version)


def promotion_id(tag: str | None, version: str) -> str:
    """Return the id of the promotion that put ``version`` there; ``alias:<version>`` where the tag is about another."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        note = json.loads(tag or "")
        if note["version"] == version:
            return str(note["id"])
    return f"alias:{version}"


def info(entry: Any, aliases: Mapping[str, tuple[str, ...]]) -> VersionInfo:
    """Return a model version in the port's terms; ``aliases`` as ``aliases_of`` gives them."""
    tags = dict(entry.tags)
    metrics: dict[str, float] = {}
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        metrics = {str(name): float(value) for name, value in json.loads(tags.get(METRIC_TAG, "{}")).items()}
    return VersionInfo(
        model=str(entry.name),
        version=str(entry.version),
        digest=tags.get(DIGEST_TAG, ""),
        state=tags.get(STATE_TAG, ""),
        promotable=tags.get(PROMOTABLE_TAG, ""),
        source_sha256=tags.get(SOURCE_TAG, ""),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds"),
        aliases=aliases.get(str(entry.version), ()),
        metrics=metrics,
    )


def audit(action: str) -> dict[str, str]:
    """Return the tags of a run that say who did what with which release of Steelyard."""
    return {
        "steelyard.action": action,
        "steelyard.by": user(),
        "steelyard.release": metadata.version("steelyard"),
    }


def metric_name(name: str) -> str:
    """Return the name with what MLflow forbids in metric names replaced."""
    return "".join(char if char.isalnum() or char in "_-. /:" else "_" for char in name)


def user() -> str:
    """Return the name of the user who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "unknown"


def now() -> str:
    """Return the present moment: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
