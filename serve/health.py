"""Probes and metrics: ``/healthz/live``, ``/healthz/ready`` and ``/metrics``."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response

from models.errors import SteelyardError
from serve.catalog import json_response
from serve.errors import NotReadyError
from serve.openapi import answer, problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from serve.access_file import AccessFile
    from serve.service import Service

_log = logging.getLogger(__name__)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


REFRESH_S: Final = 2.0
"""Least time between two questions to the rollout, however many probes come (seconds)."""
PATIENCE_S: Final = 0.1
"""Longest wait of a probe for its answer (seconds): readiness never rests on it."""
UNKNOWN: Final = "unknown: the rollout does not answer"


class Health(BaseModel):
    """The answer of a probe that says yes."""

    status: str


class Readiness(Health):
    """The answer of a process that takes requests."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    registry: str | None = None
    """How the rollout stands with the registry; whatever it says, requests are answered. ``null`` or absent: not known
    yet."""
    access: str | None = None
    """What is wrong with the access file, if anything; the last good keys stay in force."""


SCHEMAS: Final[list[type[BaseModel]]] = [Health, Readiness]


class RegistryNote:
    """One sentence on the registry, out of what the rollout last said of every model."""

    def __init__(self, service: Service, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet. clock: monotonic seconds."""
        self._service, self._clock = service, clock
        self._asked: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._note: str | None = None

    async def read(self) -> str | None:
        """Return the sentence, None where nothing is known; at once where the rollout is slow, as it was last time."""
        if self._asking is None and (self._asked is None or self._clock() - self._asked >= REFRESH_S):
            self._asked = self._clock()
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None:
            done, _ = await asyncio.wait({self._asking}, timeout=PATIENCE_S)
            if done:
                self._asking = None
        return self._note

    async def _ask(self) -> None:
        models = list(self._service.engines)
        try:
            notes = {model: _phrase(await self._service.status(model)) for model in models}
        except SteelyardError:
            self._note = UNKNOWN
        except Exception:  # noqa: BLE001 - a probe that says yes must not fail over a remark
            _log.exception("the rollout could not be asked about the registry")
            self._note = UNKNOWN
        else:
            self._note = _joined(notes)


def _joined(notes: Mapping[str, str | None]) -> str | None:
    known = {model: note for model, note in notes.items() if note is not None}
    if len(set(known.values())) <= 1:
        return next(iter(known.values()), None)
    return "; ".join(f"{model}: {note}" for model, note in known.items())


def _phrase(rollout: Mapping[str, Any]) -> str | None:
    found = rollout.get("registry")
    if not found or found["reachable"] is None:
        return None
    if found["reachable"]:
        return "reachable"
    long = "since start" if found["age_s"] is None else f"for {found['age_s']:.0f} s"
    origin = " from the cache" if found["from_cache"] else ""
    serving = rollout.get("serving")
    return f"unreachable {long}" + (f"; serving version {serving}{origin}" if serving else "")


def health_router(service: Service, access: AccessFile) -> APIRouter:
    """Return the probes over ``service``, which mention what is wrong with ``access``."""
    router = APIRouter(tags=["health"])
    note = RegistryNote(service)

    async def live(request: Request) -> Response:  # noqa: ARG001 - every handler takes the request
        """Say that the process and its event loop run."""
        return json_response({"status": "alive"})

    async def ready(request: Request) -> Response:  # noqa: ARG001 - likewise
        """Say whether requests are taken; the reason stands in ``detail`` where they are not."""
        reason = service.readiness()
        if reason is not None:
            raise NotReadyError(reason)
        registry = await note.read()
        remarks = {"registry": registry, "access": access.note}
        return json_response({"status": "ready"} | {name: remark for name, remark in remarks.items() if remark})

    async def metrics(request: Request) -> Response:  # noqa: ARG001 - likewise
        """Show all metrics in Prometheus' text format."""
        return Response(await service.metrics(), media_type=METRICS_TYPE)

    text = {"200": {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    for path, handler, responses in (
        ("/healthz/live", live, answer("The process lives.", Health)),
        ("/healthz/ready", ready, {**answer("Requests are taken.", Readiness), **problems(503)}),
        ("/metrics", metrics, text),
    ):
        router.add_api_route(
            path, handler, methods=["GET"], response_model=None, openapi_extra={"responses": responses}
        )
    return router
