"""The HTTP application: ``create_app(service, settings)``. No Ray in it, so a test client is all it needs to run."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from serve import admin, catalog, docs, health, hooks, injection, openapi
from serve.access_file import AccessFile
from serve.connection import BodyBudget
from serve.context import context_of
from serve.errors import problem_of, problem_response
from serve.guard import Guard
from serve.middleware import EdgeMiddleware
from serve.protocols import native_schema
from serve.protocols.native import NativeApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from serve.access import Limits
    from serve.access_log import AccessLog
    from serve.service import Service
    from serve.settings import Settings
    from serve.telemetry import HttpMetrics
    from serve.tracing import Tracing

DESCRIPTION: Final = (
    "Object detection. Post an image, get its boxes and the one weight version that found them. "
    "Errors are application/problem+json with a stable code."
)


def create_app(
    service: Service,
    settings: Settings,
    *,
    access: AccessFile | None = None,
    limits: Limits | None = None,
    metrics: HttpMetrics | None = None,
    tracing: Tracing | None = None,
    access_log: AccessLog | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Return the ASGI application that serves ``service`` within the limits of ``settings``.

    access: the keys in force, read and watched by whoever made it; None leaves the file of the settings unread, and
    lets nobody but the admin key in where keys are demanded. limits: those of the keys, None for none. tracing,
    access_log: told of every request, None for none. ``clock`` is that of ``RequestContext.deadline``. Nothing starts
    here: engines are entered by whoever made them.
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
    access = access or AccessFile.of(settings)
    app.include_router(health.health_router(service, access))
    if settings.webhook_secret is not None:
        app.include_router(hooks.hooks_router(service, settings.webhook_secret, budget, clock=clock))
    if settings.allow_fault_injection:
        app.include_router(injection.injection_router(service, settings, budget, clock=clock))
    docs.install(app)
    openapi.install(app, [*native_schema.SCHEMAS, *catalog.SCHEMAS, *admin.SCHEMAS, *health.SCHEMAS, *hooks.SCHEMAS])
    app.add_exception_handler(HTTPException, _routing_error)
    guard = Guard(access, anonymous_predict=settings.anonymous_predict, webhook=settings.webhook_secret is not None)
    app.add_middleware(
        EdgeMiddleware,
        longest_s=settings.request_timeout_s,
        guard=guard,
        limits=limits,
        metrics=metrics,
        tracing=tracing,
        access_log=access_log,
        clock=clock,
    )
    return app


async def _routing_error(request: Request, error: Exception) -> Response:
    return problem_response(problem_of(error), context_of(request.scope).request_id)
