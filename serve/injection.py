"""``POST /v1/faults``: arms a named fault point of the rollout; exists only where fault injection is allowed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response  # noqa: TC002 - likewise

from serve.admin import MAX_ADMIN_BODY, check_admin
from serve.catalog import json_response
from serve.connection import BodyBudget, read_body
from serve.context import context_of
from serve.errors import InvalidBodyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.service import Service
    from serve.settings import Settings


def injection_router(
    service: Service, settings: Settings, budget: BodyBudget, *, clock: Callable[[], float] = time.monotonic
) -> APIRouter:
    """Return the route over ``service``; body ``{"point", "action"}``, names and actions as in ``serve/faults.py``."""
    router = APIRouter()

    async def arm(request: Request) -> Response:
        """Arm a fault point."""
        check_admin(request, settings)
        seconds = context_of(request.scope).deadline - clock()
        with budget.lend() as loan:
            body = await read_body(request.receive, request.headers, limit=MAX_ADMIN_BODY, seconds=seconds, loan=loan)
        try:
            document: Any = orjson.loads(body)
            point, action = str(document["point"]), str(document["action"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            msg = 'Send JSON such as {"point": "actor.after_commit", "action": "exit"}'
            raise InvalidBodyError(msg) from error
        await service.arm(point, action)
        return json_response({"point": point, "action": action})

    router.add_api_route("/v1/faults", arm, methods=["POST"], response_model=None, include_in_schema=False)
    return router
