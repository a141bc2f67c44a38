"""How well a registered version detects: mean average precision of the release that would serve, kept in the registry.

The network runs in a sandboxed child (``validation.py``); what the child says is checked here.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ConversionError, EvaluationError
from models.weights import sandbox
from models.weights.evaluation_set import open_set
from models.weights.registry import READY, Evaluation
from models.weights.release import ONNX, open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release
    from models.weights.evaluation_set import EvaluationSet
    from models.weights.registry import Registry
    from models.weights.trust import SignatureRule

IMAGE_S = 5.0
"""Time that an image adds to the deadline (seconds): the largest detectors on one slow core."""


def evaluate(
    registry: Registry,
    model: str,
    version: str,
    data: Path,
    *,
    rule: SignatureRule,
    progress: Callable[[str, float], None] | None = None,
) -> Evaluation:
    """Evaluate a version on labelled data and keep the result in the registry; blocks for seconds to hours.

    Args:
        registry: where the version is and the evaluation goes.
        model: its name.
        version: as the registry counts it.
        data: an Ultralytics ``data.yaml``; its ``val`` part is used.
        rule: which signatures count; its network runs in the sandbox, and is not loaded against the rule even there.
        progress: called with the stage's name and the fraction done, 0 to 1.

    Raises:
        EvaluationError: the data cannot be read or does not fit the version, or the evaluation failed.
        ReleaseRejectedError: the version's files are not those that were registered, or its signature does not count.
        UnknownModelError, UnknownVersionError, RegistryError: from the registry.

    """
    info = registry.version(model, version)
    if info.state != READY:
        msg = f"Version {version} of {model} is not ready: its registration did not finish. Register the weights again."
        raise EvaluationError(msg)
    chosen = open_set(data)
    with tempfile.TemporaryDirectory(prefix="steelyard-evaluate-") as name:
        folder, scratch = Path(name) / "release", Path(name) / "scratch"
        folder.mkdir()
        scratch.mkdir()
        registry.fetch(model, version, folder)
        check = rule.check(info.signature)
        release = open_release(model, version, read_folder(folder), expect_digest=info.digest, verify_signature=check)
        chosen.check_classes(release.contract.names)
        digest = chosen.digest()
        result = _in_sandbox(release, folder / ONNX, chosen, scratch, progress)
    if chosen.digest() != digest:
        msg = f"The data {chosen.name} changed during the evaluation; evaluate again when nobody writes it."
        raise EvaluationError(msg)
    evaluation = _checked(result, release, chosen, digest)
    registry.record_evaluation(model, version, evaluation)
    return evaluation


def _in_sandbox(
    release: Release,
    onnx: Path,
    data: EvaluationSet,
    scratch: Path,
    progress: Callable[[str, float], None] | None,
) -> dict[str, Any]:
    request = {
        "onnx": str(onnx),
        "contract": asdict(release.contract),
        "samples": [[str(each.image), None if each.label is None else str(each.label)] for each in data.samples],
    }
    try:
        return sandbox.run_sandboxed(
            "models.weights.validation",
            request,
            scratch,
            progress=progress,
            deadline_s=sandbox.DEADLINE_S + IMAGE_S * len(data.samples),
            work="evaluation",
        )
    except ConversionError as error:
        raise EvaluationError(str(error)) from error


def _checked(result: dict[str, Any], release: Release, data: EvaluationSet, digest: str) -> Evaluation:
    try:
        scores = float(result["map50_95"]), float(result["map50"])
        boxes, method = int(result["boxes"]), str(result["method"])[:200]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        msg = "The evaluation handed back no scores; register the weights again and evaluate the new version."
        raise EvaluationError(msg) from error
    if any(not (math.isfinite(score) and 0.0 <= score <= 1.0) for score in scores):
        msg = "The evaluation handed back scores outside 0 to 1; evaluate again."
        raise EvaluationError(msg)
    return Evaluation(
        data=digest,
        data_name=data.name,
        release=release.digest,
        map50_95=scores[0],
        map50=scores[1],
        images=len(data.samples),
        boxes=boxes,
        method=method,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
