"""What MLflow's entities and tags mean: pure translations between MLflow's terms and the Registry port's."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from models.rollout.order import PLAIN, Order, decode
from models.weights.registry import (
    DIGEST_TAG,
    EVALUATION_TAG,
    PRODUCTION,
    PROMOTABLE_TAG,
    SIGNATURE_TAG,
    SOURCE_TAG,
    STATE_TAG,
    Evaluation,
    VersionInfo,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

METRIC_TAG = "steelyard.metrics"
_ACTION_TAG = "steelyard.action"


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


def latest_promotion(model_tag: str | None, version_tag: str | None) -> str | None:
    """Return the later of two promotion notes: that of the model, and that of the version which its alias names.

    A promotion writes the version's, moves the alias, then writes the model's. Read in between, the version's is the
    later one; once an alias is moved by hand, the model's is.
    """

    def moment(tag: str | None) -> str:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            return str(json.loads(tag or "")["at"])
        return ""

    told = moment(version_tag)
    return version_tag if told and told >= moment(model_tag) else model_tag


def promotion_id(tag: str | None, version: str) -> str:
    """Return the id of the promotion that put ``version`` there; ``alias:<version>`` where the tag is about another."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        note = json.loads(tag or "")
        if note["version"] == version:
            return str(note["id"])
    return f"alias:{version}"


def promotion_order(tag: str | None, version: str) -> Order:
    """Return what that promotion asked for; nothing special where the tag is about another version."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        note = json.loads(tag or "")
        if note["version"] == version and "id" in note:
            return decode(json.dumps(note["order"]))
    return PLAIN


def encode_evaluation(evaluation: Evaluation) -> str:
    """Return the value of an evaluation's tag."""
    return json.dumps(asdict(evaluation), sort_keys=True, allow_nan=False)


def evaluations_of(entry: Any) -> tuple[Evaluation, ...]:
    """Return the evaluations in a model version's tags, oldest first; tags that make no sense are left out."""
    found = []
    for name, value in dict(entry.tags).items():
        if name.startswith(EVALUATION_TAG):
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                evaluation = _evaluation(json.loads(value))
                if evaluation.data == name.removeprefix(EVALUATION_TAG):
                    found.append(evaluation)
    return tuple(sorted(found, key=lambda each: (each.created, each.data)))


def _evaluation(note: Any) -> Evaluation:
    """Raises KeyError, TypeError or ValueError where ``note`` is none."""
    scores = {name: float(note[name]) for name in ("map50_95", "map50")}
    if any(not (math.isfinite(score) and 0.0 <= score <= 1.0) for score in scores.values()):
        raise ValueError(scores)
    return Evaluation(
        data=str(note["data"]),
        data_name=str(note["data_name"]),
        release=str(note["release"]),
        images=int(note["images"]),
        boxes=int(note["boxes"]),
        method=str(note["method"]),
        created=str(note["created"]),
        **scores,
    )


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
        signature=tags.get(SIGNATURE_TAG, ""),
    )


def served_version(tag: str | None) -> str | None:
    """Return the version that a fleet recorded as serving, None where the tag is missing or makes no sense."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(tag or "")["version"])
    return None


def registered_here(run: Any) -> bool:
    """Return whether ``run`` was made by registering a version, not by somebody's training."""
    return bool(dict(run.data.tags).get(_ACTION_TAG) == "register")


def audit(action: str) -> dict[str, str]:
    """Return the tags of a run that say who did what with which release of Steelyard."""
    return {
        _ACTION_TAG: action,
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
