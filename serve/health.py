"""Probes and metrics: ``/healthz/live``, ``/healthz/ready`` and ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response

from serve.catalog import json_response
from serve.errors import NotReadyError
from serve.openapi import answer, problems

if TYPE_CHECKING:
    from serve.service import Service

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Health(BaseModel):
    """The answer of a probe that says yes."""

    status: str


SCHEMAS: Final[list[type[BaseModel]]] = [Health]


def health_router(service: Service) -> APIRouter:
    """Return the probes over ``service``."""
    router = APIRouter(tags=["health"])

    async def live(request: Request) -> Response:  # noqa: ARG001 - every handler takes the request
        """Say that the process and its event loop run."""
        return json_response({"status": "alive"})

    async def ready(request: Request) -> Response:  # noqa: ARG001 - likewise
        """Say whether requests are taken; the reason stands in ``detail`` where they are not."""
        reason = service.readiness()
        if reason is not None:
            raise NotReadyError(reason)
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:  # noqa: ARG001 - likewise
        """Show all metrics in Prometheus' text format."""
        return Response(await service.metrics(), media_type=METRICS_TYPE)

    text = {"200": {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    for path, handler, responses in (
        ("/healthz/live", live, answer("The process lives.", Health)),
        ("/healthz/ready", ready, {**answer("Requests are taken.", Health), **problems(503)}),
        ("/metrics", metrics, text),
    ):
        router.add_api_route(
            path, handler, methods=["GET"], response_model=None, openapi_extra={"responses": responses}
        )
    return router
