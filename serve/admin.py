"""Admin routes: ``POST /v1/models/{model}/promote`` and ``/rollback``, for keys with the scope ``admin``.

While no keys are in force they are open to this machine only, and then a web page in a browser on it must not reach
them either: requests of other sites (``Sec-Fetch-Site``, ``Origin``) and under foreign host names (DNS rebinding) are
refused.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response  # noqa: TC002 - likewise

from models.errors import InvalidOptionError, SteelyardError, UnauthorizedError
from models.rollout.order import MAX_REASON, MAX_STEPS, MAX_TRIAL_S, PLAIN, Order, from_document
from serve.access import AccessKeys, Scope
from serve.access_file import key_of
from serve.catalog import RolloutState, json_response
from serve.connection import BodyBudget, read_body
from serve.context import context_of
from serve.errors import ForbiddenError, InvalidBodyError, OptionError, UnsupportedMediaTypeError
from serve.guard import credential_of, key_in_force
from serve.openapi import MODEL_PARAMETER, answer, problems, ref
from serve.protocols.native import engine_of
from serve.service import OPERATOR
from serve.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from serve.service import Service
    from serve.settings import Settings

MAX_ADMIN_BODY: Final = 16 * 1024
_MAX_VERSION: Final = 64
_audit = logging.getLogger("steelyard.audit")


class OrderRequest(BaseModel):
    """Gates to waive and trials before the commit; what is left out is not asked for. The shares of canary rise."""

    model_config = ConfigDict(extra="forbid")

    allow_contract_change: bool = False
    force: str = Field(default="", max_length=MAX_REASON, pattern=r"^$|\S")
    shadow_s: float = Field(default=0.0, ge=0.0, le=MAX_TRIAL_S)
    shadow_fraction: float = Field(default=0.1, gt=0.0, le=1.0)
    canary: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default=[], max_length=MAX_STEPS)
    step_s: float = Field(default=300.0, gt=0.0, le=MAX_TRIAL_S)


class PromoteRequest(BaseModel):
    """The version to serve, a string as the registry names it; why; and under which order."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1, max_length=_MAX_VERSION)
    reason: str = Field(default="promote", min_length=1, max_length=MAX_REASON, pattern=r"\S")
    order: OrderRequest = OrderRequest()


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promote body asks for."""

    version: str
    reason: str = "promote"
    order: Order = PLAIN


SCHEMAS: Final[list[type[BaseModel]]] = [PromoteRequest, OrderRequest]


def check_admin(request: Request, settings: Settings) -> None:
    """Let an admin request pass. Raises UnauthorizedError or ForbiddenError."""
    in_force, key = key_in_force(request.scope)
    if in_force or settings.admin_key is not None:
        if not in_force:
            key = AccessKeys(other=key_of(settings)).find(credential_of(request.scope["headers"]), 0.0)
        if key is None or Scope.ADMIN not in key.scopes:
            msg = "This route needs the admin key; send it as Authorization: Bearer <key> or X-Api-Key: <key>"
            raise UnauthorizedError(msg)
        return
    headers = request.headers
    host = urlsplit(f"//{headers.get('host', '')}")
    origin = headers.get("origin")
    same_site = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if (
        not is_loopback(settings.host)
        or not is_loopback(host.hostname or "")
        or not same_site
        or (origin is not None and urlsplit(origin).netloc != host.netloc)
    ):
        msg = "Without keys this route answers only programs on the service's own machine; make keys"
        raise ForbiddenError(msg)


def parse_promote(body: bytes, content_type: str) -> Promotion:
    """Return what a promote body asks for. Raises UnsupportedMediaTypeError, InvalidBodyError or OptionError."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        msg = 'Send JSON such as {"version": "2"} with Content-Type: application/json'
        raise UnsupportedMediaTypeError(msg)
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or "version" not in document or set(document) - {"version", "reason", "order"}:
        msg = (
            'The body is not a JSON object with the key "version" and, if need be, "reason" and "order"; send for '
            'example {"version": "2"}'
        )
        raise InvalidBodyError(msg)
    version, reason = document["version"], document.get("reason", "promote")
    if not isinstance(version, str) or not 0 < len(version) <= _MAX_VERSION:
        msg = f'version is not a string of 1 to {_MAX_VERSION} characters; send for example "2", with quotes'
        raise OptionError(msg, parameter="version")
    if not isinstance(reason, str) or not 0 < len(reason.strip()) <= len(reason) <= MAX_REASON:
        msg = f"reason is not a text of 1 to {MAX_REASON} characters; say why, or leave it out"
        raise OptionError(msg, parameter="reason")
    try:
        return Promotion(version, reason, from_document(document.get("order", {})))
    except InvalidOptionError as error:
        raise OptionError(str(error), parameter="order") from error


def admin_router(
    service: Service, settings: Settings, budget: BodyBudget, *, clock: Callable[[], float] = time.monotonic
) -> APIRouter:
    """Return the admin routes over ``service``."""
    router = APIRouter(tags=["admin"])

    async def body_of(request: Request) -> bytes:
        seconds = context_of(request.scope).deadline - clock()
        with budget.lend() as loan:
            return await read_body(request.receive, request.headers, limit=MAX_ADMIN_BODY, seconds=seconds, loan=loan)

    async def audited(
        request: Request, action: str, version: str | None, work: Awaitable[dict[str, object]]
    ) -> Response:
        result = "failed"
        try:
            state = await work
            result = "accepted"
        except SteelyardError as error:
            result = error.code
            raise
        finally:
            context = context_of(request.scope)
            _audit.info(
                action,
                extra={
                    "request_id": context.request_id,
                    "principal": context.key_id or "admin",
                    "model": request.path_params["model"],
                    "version": version,
                    "result": result,
                },
            )
        return json_response(state)

    async def promote(request: Request) -> Response:
        """Make a version the desired one. The rollout follows; watch it under ``/rollout``."""
        check_admin(request, settings)
        model = request.path_params["model"]
        engine_of(service.engines, model)
        asked = parse_promote(await body_of(request), request.headers.get("content-type", ""))
        who = context_of(request.scope).key_id or OPERATOR
        work = service.promote(model, asked.version, reason=asked.reason, order=asked.order, who=who)
        return await audited(request, "promote", asked.version, work)

    async def rollback(request: Request) -> Response:
        """Return to the version that served before. The body is empty."""
        check_admin(request, settings)
        model = request.path_params["model"]
        engine_of(service.engines, model)
        if (await body_of(request)).strip() not in (b"", b"{}"):
            msg = "rollback takes no body; to choose a version use promote"
            raise InvalidBodyError(msg)
        who = context_of(request.scope).key_id or OPERATOR
        return await audited(request, "rollback", None, service.rollback(model, who=who))

    shared: dict[str, Any] = {
        "parameters": [MODEL_PARAMETER],
        "responses": {
            **answer("Accepted; the rollout's state.", RolloutState),
            **problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503),
        },
    }
    wanted = {"required": True, "content": {"application/json": {"schema": ref(PromoteRequest)}}}
    for path, handler, extra in (
        ("/v1/models/{model}/promote", promote, {**shared, "requestBody": wanted}),
        ("/v1/models/{model}/rollback", rollback, shared),
    ):
        router.add_api_route(path, handler, methods=["POST"], response_model=None, openapi_extra=extra)
    return router
