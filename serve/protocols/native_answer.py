"""The native answer: Detections → the Ultralytics Platform's JSON shape, with provenance in metadata and headers.

``results`` holds what ultralytics' ``Results.summary(normalize, decimals)`` returns (ultralytics 8.4,
engine/results.py): float32 values widened to double, divided by width or height where normalized, then ``round``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import orjson
from starlette.responses import Response

from models.errors import BackendError
from models.types import Answer
from serve.errors import Problem, problem_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve.protocols.native_options import Asked

JSON: Final = "application/json"
_SPEED_DECIMALS: Final = 3

Outcome = Answer | Exception
"""What became of one image."""


def summary(answer: Answer, *, normalize: bool, decimals: int) -> list[dict[str, object]]:
    """Return the boxes of one image, by falling confidence; pixels of the upright original, or 0 to 1.

    Raises BackendError where a number is not finite: JSON has no such numbers, and null would be no box.
    """
    found = answer.detections
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        msg = "The detector returned a box that is no number"
        raise BackendError(msg)
    height, width = answer.shape if normalize else (1, 1)
    names = answer.names
    return [
        {
            "name": names[index],
            "class": index,
            "confidence": round(score, decimals),
            "box": {
                "x1": round(x1 / width, decimals),
                "y1": round(y1 / height, decimals),
                "x2": round(x2 / width, decimals),
                "y2": round(y2 / height, decimals),
            },
        }
        for (x1, y1, x2, y2), score, index in zip(
            found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    ]


def _image(outcome: Outcome, asked: Asked) -> dict[str, object]:
    if not isinstance(outcome, Answer):
        return {"error": problem_of(outcome).item()}
    timings = outcome.timings
    return {
        "shape": outcome.shape,
        "speed": {
            "preprocess": round(timings.decode_ms, _SPEED_DECIMALS),
            "inference": round(timings.infer_ms, _SPEED_DECIMALS),
            "postprocess": round(timings.post_ms, _SPEED_DECIMALS),
        },
        "results": summary(outcome, normalize=asked.normalize, decimals=asked.decimals),
    }


def document(outcomes: Sequence[Outcome], asked: Asked) -> dict[str, object]:
    """Return the answer's JSON value. At least one outcome is an Answer, and all Answers are of one release."""
    first = next(outcome for outcome in outcomes if isinstance(outcome, Answer))
    return {
        "images": [_image(outcome, asked) for outcome in outcomes],
        "metadata": {
            "imageCount": len(outcomes),
            "model": first.release.model,
            "version": first.release.version,
            "digest": first.release.digest,
            "generation": first.generation,
            "task": "detect",
            "backend": first.backend,
            "thresholds": {
                "conf": first.thresholds.conf,
                "iou": first.thresholds.iou,
                "max_det": first.thresholds.max_det,
            },
        },
    }


def server_timing(answers: Sequence[Answer], total_ms: float) -> str:
    """Return the ``Server-Timing`` value (W3C Server Timing, milliseconds).

    Images of one request run at the same time, so each stage shows its slowest image.
    """
    stages = [(a.timings.decode_ms, a.timings.queue_ms, a.timings.infer_ms, a.timings.post_ms) for a in answers]
    decode, queue, infer, post = (max(stage) for stage in zip(*stages, strict=True))
    timings = {"decode": decode, "queue": queue, "infer": infer, "post": post, "total": total_ms}
    return ", ".join(f"{stage};dur={milliseconds:.2f}" for stage, milliseconds in timings.items())


def success(outcomes: Sequence[Outcome], asked: Asked, *, total_ms: float) -> Response:
    """Return the 200 answer of a request of which at least one image succeeded."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    return Response(
        orjson.dumps(document(outcomes, asked)),
        media_type=JSON,
        headers={
            "X-Model-Version": answers[0].release.version,
            "X-Weights-Digest": answers[0].release.digest,
            "Server-Timing": server_timing(answers, total_ms),
        },
    )


def failure(errors: Sequence[Exception]) -> Problem:
    """Return the problem of a request of which every image failed: the first one's, and a list of all if several."""
    problem = problem_of(errors[0])
    if len(errors) == 1:
        return problem
    each = [problem_of(error).item() for error in errors]
    return Problem(
        status=problem.status,
        title=problem.title,
        code=problem.code,
        detail=problem.detail,
        headers=problem.headers,
        extra={**problem.extra, "images": each},
    )
