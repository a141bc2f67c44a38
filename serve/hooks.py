"""``POST /v1/hooks/mlflow``: MLflow tells that an alias moved, so that the rollout need not wait for its next look.

It exists only where a secret is set, and the signature is its only key. A lost or refused delivery costs one interval
of polling and nothing else.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response  # noqa: TC002 - likewise

from serve.catalog import json_response
from serve.connection import BodyBudget, read_body
from serve.context import context_of
from serve.errors import RepeatedDeliveryError
from serve.openapi import answer, problems
from serve.protocols.native import engine_of
from serve.webhook import concerns, read_event, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import SecretStr

    from serve.service import Service

PATH: Final = "/v1/hooks/mlflow"
MAX_EVENT_BODY: Final = 16 * 1024
_audit = logging.getLogger("steelyard.audit")


class HookAnswer(BaseModel):
    """What became of a genuine delivery."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    hinted: bool
    """Whether the rollout reads the alias now; false for events that are not about a production alias."""


SCHEMAS: Final[list[type[BaseModel]]] = [HookAnswer]


def hooks_router(
    service: Service,
    secret: SecretStr,
    budget: BodyBudget,
    *,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> APIRouter:
    """Return the route over ``service``. now: the clock of the deliveries' timestamps (unix seconds)."""
    router = APIRouter(tags=["admin"])

    async def mlflow(request: Request) -> Response:
        """Take an event of MLflow's model registry, signed as MLflow signs it."""
        seconds = context_of(request.scope).deadline - clock()
        with budget.lend() as loan:
            body = await read_body(request.receive, request.headers, limit=MAX_EVENT_BODY, seconds=seconds, loan=loan)
        delivery = verify(request.headers, body, secret=secret.get_secret_value(), now=now())
        event = read_event(body)
        if event is None or not concerns(event):
            return json_response({"hinted": False})
        engine_of(service.engines, event.model)
        if not await service.hint(event.model, delivery):
            msg = "This delivery was taken before; nothing was done again"
            raise RepeatedDeliveryError(msg)
        _audit.info(
            "hint",
            extra={
                "request_id": context_of(request.scope).request_id,
                "principal": "mlflow",
                "model": event.model,
                "delivery": delivery.ident,
            },
        )
        return json_response({"hinted": True})

    headers = [
        {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
        for name, text in (
            ("X-MLflow-Signature", "`v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`."),
            ("X-MLflow-Delivery-Id", "The delivery's id, the same when it is sent again."),
            ("X-MLflow-Timestamp", "When it was signed, in unix seconds; five minutes off at most."),
        )
    ]
    extra: dict[str, Any] = {
        "parameters": headers,
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            **answer("Genuine; whether it was of use.", HookAnswer),
            **problems(400, 401, 404, 408, 409, 413, 415, 503),
        },
    }
    router.add_api_route(PATH, mlflow, methods=["POST"], response_model=None, openapi_extra=extra)
    return router
