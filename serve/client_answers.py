"""What the service's answers mean to a client: typed rows, boxes and errors out of JSON that anyone may have sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from models.errors import SteelyardError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx


class ServiceError(SteelyardError):
    """The service refused a request, failed on it, or could not be reached.

    status: HTTP status, or None where no answer came. code: the problem's stable code, e.g. ``invalid_image``;
    ``unreachable`` where no answer came and ``bad_answer`` where it was not this API's.
    """

    def __init__(
        self, detail: str, *, code: str, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        """Keep what the problem+json body said; ``retry_after_s`` (seconds) is the Retry-After header's advice."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.retry_after_s = retry_after_s


class ModelRow(TypedDict):
    """One model as ``GET /v1/models`` lists it; ``task`` and ``classes`` are None where only the registry was asked."""

    name: str
    version: str | None
    digest: str | None
    task: str | None
    classes: Any
    state: str


class VersionRow(TypedDict):
    """One version as ``GET /v1/models/{model}/versions`` lists it; ``created`` is UTC in ISO 8601."""

    version: str
    digest: str
    aliases: list[str]
    state: str
    metrics: dict[str, float]
    created: str
    signature: str
    signed_by: str | None


class ReplicaRow(TypedDict):
    """One replica of a rollout."""

    id: str
    version: str | None
    state: str


class TrialRow(TypedDict):
    """A trial step under way; fraction and left_s: see the service's own description."""

    mode: str
    number: int
    of: int
    fraction: float
    left_s: float
    evidence: dict[str, float]


class ProbationRow(TypedDict):
    """The probation of the version that serves."""

    left_s: float
    evidence: dict[str, float]


class VerdictRow(TypedDict):
    """What one gate said."""

    gate: str
    passed: bool
    waived: bool
    reason: str
    measured: dict[str, float]


class RegistryRow(TypedDict):
    """What the rollout knows of the registry; age_s: seconds since the last successful reading."""

    reachable: bool | None
    age_s: float | None
    failures: int
    reason: str | None
    from_cache: bool


class Rollout(TypedDict):
    """What ``GET /v1/models/{model}/rollout`` says: desired and serving are two things."""

    model: str
    desired: str | None
    serving: str | None
    generation: int
    state: str
    step: str | None
    reason: str | None
    trial: NotRequired[TrialRow | None]
    probation: NotRequired[ProbationRow | None]
    verdicts: NotRequired[list[VerdictRow]]
    registry: NotRequired[RegistryRow | None]
    replicas: list[ReplicaRow]


@dataclass(frozen=True, slots=True)
class Box:
    """One detection: class name and id, confidence (0 to 1), corners in pixels of the upright original image."""

    name: str
    class_id: int
    confidence: float
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class DetectAnswer:
    """The answer to one image.

    shape: (height, width) in pixels. speed: milliseconds a stage. model, version, digest: which release said it.
    body: the whole JSON answer as the service sent it.
    """

    boxes: tuple[Box, ...]
    shape: tuple[int, int]
    speed: Mapping[str, float]
    model: str
    version: str
    digest: str
    body: Mapping[str, Any]


def json_object(response: httpx.Response) -> dict[str, Any] | None:
    """Return the body where it is a JSON object, else None."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def problem(response: httpx.Response) -> ServiceError:
    """Return the error that a problem+json body (RFC 9457) describes, or a fair guess where there is none."""
    body = json_object(response) or {}
    status = response.status_code
    detail = body.get("detail") or body.get("title") or f"the service answered {status} and did not say why"
    try:
        retry_after_s = max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        retry_after_s = None
    return ServiceError(
        str(detail), code=str(body.get("code") or f"http_{status}"), status=status, retry_after_s=retry_after_s
    )


def listed(body: Mapping[str, Any], name: str) -> list[Any]:
    """Return the list that ``body`` holds under ``name``. Raises ServiceError where there is none."""
    rows = body.get(name)
    if not isinstance(rows, list):
        msg = f"the service's answer has no list of {name}; is it Steelyard?"
        raise ServiceError(msg, code="bad_answer")
    return rows


def read_answer(body: Mapping[str, Any]) -> DetectAnswer:
    """Return the answer to the first image in ``body``. Raises ServiceError: its own error, or no such answer."""
    try:
        image, metadata = body["images"][0], body["metadata"]
        if "error" in image:
            error = image["error"]
            raise ServiceError(str(error.get("detail", error)), code=str(error.get("code", "invalid_image")))
        height, width = image["shape"]
        boxes = tuple(
            Box(
                name=str(row["name"]),
                class_id=int(row["class"]),
                confidence=float(row["confidence"]),
                x1=float(row["box"]["x1"]),
                y1=float(row["box"]["y1"]),
                x2=float(row["box"]["x2"]),
                y2=float(row["box"]["y2"]),
            )
            for row in image["results"]
        )
        return DetectAnswer(
            boxes=boxes,
            shape=(int(height), int(width)),
            speed={str(stage): float(ms) for stage, ms in image["speed"].items()},
            model=str(metadata["model"]),
            version=str(metadata["version"]),
            digest=str(metadata["digest"]),
            body=body,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        msg = "the service's answer is not one of the detection API; is it Steelyard, and of this version?"
        raise ServiceError(msg, code="bad_answer") from None
