"""The HTTP application: ``create_app(service, settings)``. No Ray in it, so a test client is all it needs to run."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from serve import admin, catalog, docs, health, hooks, injection, openapi
from serve.connection import BodyBudget
from serve.context import context_of
from serve.errors import problem_of, problem_response
from serve.middleware import EdgeMiddleware
from serve.protocols import native_schema
from serve.protocols.native import NativeApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from serve.service import Service
    from serve.settings import Settings
    from serve.telemetry import HttpMetrics

DESCRIPTION: Final = (
    "Object detection. Post an image, get its boxes and the one weight version that found them. "
    "Errors are application/problem+json with a stable code."
)


def create_app(
    service: Service,
    settings: Settings,
    *,
    metrics: HttpMetrics | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the ASGI application that serves ``service`` within the limits of ``settings``.

    ``clock`` is that of ``RequestContext.deadline``. Nothing starts here: engines are entered by whoever made them.
    """
    app = FastAPI(
        title="Steelyard",
        version=version("steelyard"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        # A redirect would repeat the client's Host header and make it send its image twice.
        redirect_slashes=False,
    )
    budget = BodyBudget.for_bodies_of(settings.max_body_bytes)
    app.include_router(NativeApi(service, settings, budget, clock=clock).router())
    app.include_router(catalog.catalog_router(service))
    app.include_router(admin.admin_router(service, settings, budget, clock=clock))
    app.include_router(health.health_router(service))
    if settings.webhook_secret is not None:
        app.include_router(hooks.hooks_router(service, settings.webhook_secret, budget, clock=clock))
    if settings.allow_fault_injection:
        app.include_router(injection.injection_router(service, settings, budget, clock=clock))
    docs.install(app)
    openapi.install(app, [*native_schema.SCHEMAS, *catalog.SCHEMAS, *admin.SCHEMAS, *health.SCHEMAS, *hooks.SCHEMAS])
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_middleware(EdgeMiddleware, longest_s=settings.request_timeout_s, metrics=metrics, clock=clock)
    return app


async def _routing_error(request: Request, error: Exception) -> Response:
    return problem_response(problem_of(error), context_of(request.scope).request_id)
