"""``GET /v1/models`` and below: which models are served, by which versions, and how a rollout stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response

from serve.openapi import MODEL_PARAMETER, answer, problems
from serve.protocols.native import engine_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.weights.registry import VersionInfo
    from serve.service import Detector, Service

READY: Final = "ready"
LOADING: Final = "loading"


class _Schema(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ModelSummary(_Schema):
    """One model as this replica serves it; no version, digest and classes before the first release is loaded."""

    name: str
    version: str | None
    digest: str | None
    task: str
    classes: list[str]
    """Class names; a class's id is its place in this list."""
    state: str
    """``ready`` or ``loading``."""


class ModelList(_Schema):
    """All models, the first of which answers ``/v1/detect``."""

    models: list[ModelSummary]


class ModelDetail(ModelSummary):
    """One model with what its serving release says of itself."""

    generation: int
    backend: str
    imgsz: int | None
    stride: int | None
    thresholds: dict[str, float]
    metrics: dict[str, float]


class VersionSummary(_Schema):
    """One registered version."""

    version: str
    digest: str
    aliases: list[str]
    state: str
    metrics: dict[str, float]
    created: str
    signature: str
    """``trusted``, ``unsigned``, ``unchecked`` (no key is trusted here), ``untrusted`` (by a key that is not trusted
    here), ``invalid`` or ``unknown`` (the keys cannot be read)."""
    signed_by: str | None
    """Id of the key that the signature names; it counts only where ``signature`` is ``trusted``."""


class VersionList(_Schema):
    """All versions of a model, oldest first."""

    versions: list[VersionSummary]


class ReplicaState(_Schema):
    """One replica in a rollout."""

    id: str
    version: str | None
    state: str


class GateVerdict(_Schema):
    """What one gate said of the version tried most recently, and the numbers behind it."""

    gate: str
    passed: bool
    waived: bool
    reason: str
    measured: dict[str, float]


class TrialState(_Schema):
    """The trial step under way: its share of images or clients, the seconds left, and what it has shown so far."""

    mode: str
    number: int
    of: int
    fraction: float
    left_s: float
    evidence: dict[str, float]


class ProbationState(_Schema):
    """The probation of the version that serves: seconds left; the version before as serving, it as candidate."""

    left_s: float
    evidence: dict[str, float]


class RegistryState(_Schema):
    """What the rollout knows of the registry, from which it learns what is desired."""

    reachable: bool | None
    """``null`` before the first reading has ended."""
    age_s: float | None
    """Seconds since the last successful reading; ``null`` where this rollout never had one."""
    failures: int
    """Readings that failed since the rollout began."""
    reason: str | None
    """Why the latest reading failed."""
    from_cache: bool
    """Whether what serves was taken from this machine's cache, verified, without asking the registry."""


class RolloutState(_Schema):
    """Desired against serving, and where the rollout between them stands."""

    model: str
    desired: str | None
    serving: str | None
    generation: int
    state: str
    step: str | None
    reason: str | None
    trial: TrialState | None = None
    probation: ProbationState | None = None
    verdicts: list[GateVerdict] = []
    registry: RegistryState | None = None
    replicas: list[ReplicaState]


SCHEMAS: Final[list[type[BaseModel]]] = [ModelList, ModelDetail, VersionList, RolloutState]


def model_summary(name: str, engine: Detector) -> dict[str, object]:
    """Return one entry of ``GET /v1/models``."""
    release = engine.serving
    return {
        "name": name,
        "version": release.version if release else None,
        "digest": release.digest if release else None,
        "task": release.contract.task if release else "detect",
        "classes": list(release.contract.names) if release else [],
        "state": READY if release else LOADING,
    }


def model_detail(name: str, engine: Detector) -> dict[str, object]:
    """Return ``GET /v1/models/{model}``."""
    release = engine.serving
    defaults = release.thresholds if release else None
    return {
        **model_summary(name, engine),
        "generation": engine.generation,
        "backend": engine.backend_name,
        "imgsz": release.contract.imgsz if release else None,
        "stride": release.contract.stride if release else None,
        "thresholds": {"conf": defaults.conf, "iou": defaults.iou, "max_det": defaults.max_det} if defaults else {},
        "metrics": dict(release.metrics) if release else {},
    }


def version_summary(info: VersionInfo) -> dict[str, object]:
    """Return one entry of ``GET /v1/models/{model}/versions``."""
    return {
        "version": info.version,
        "digest": info.digest,
        "aliases": list(info.aliases),
        "state": info.state,
        "metrics": dict(info.metrics),
        "created": info.created,
        "signature": info.standing or "unsigned",
        "signed_by": info.signed_by,
    }


def json_response(value: Mapping[str, object], status: int = 200) -> Response:
    """Return ``value`` as JSON."""
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def catalog_router(service: Service) -> APIRouter:
    """Return the read-only routes over ``service``."""
    router = APIRouter(tags=["models"])

    async def models(request: Request) -> Response:  # noqa: ARG001 - every handler takes the request
        """List the models that are served."""
        return json_response({"models": [model_summary(name, engine) for name, engine in service.engines.items()]})

    async def model(request: Request) -> Response:
        """Show one model."""
        name = request.path_params["model"]
        return json_response(model_detail(name, engine_of(service.engines, name)))

    async def versions(request: Request) -> Response:
        """List the versions of a model, oldest first."""
        name = request.path_params["model"]
        engine_of(service.engines, name)
        return json_response({"versions": [version_summary(info) for info in await service.versions(name)]})

    async def rollout(request: Request) -> Response:
        """Show what is desired, what serves, and every replica between them."""
        name = request.path_params["model"]
        engine_of(service.engines, name)
        return json_response(await service.status(name))

    one: dict[str, Any] = {"parameters": [MODEL_PARAMETER]}
    listed = {"responses": answer("The models.", ModelList)}
    shown = {**one, "responses": {**answer("The model.", ModelDetail), **problems(404)}}
    versioned = {**one, "responses": {**answer("The versions.", VersionList), **problems(404, 503)}}
    rolled = {**one, "responses": {**answer("The rollout's state.", RolloutState), **problems(404, 503)}}
    for path, handler, extra in (
        ("/v1/models", models, listed),
        ("/v1/models/{model}", model, shown),
        ("/v1/models/{model}/versions", versions, versioned),
        ("/v1/models/{model}/rollout", rollout, rolled),
    ):
        router.add_api_route(path, handler, methods=["GET"], response_model=None, openapi_extra=extra)
    return router
