"""The native protocol: ``POST /v1/detect`` and ``POST /v1/models/{model}/detect``, from body to answer."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation at run time
from starlette.responses import Response  # noqa: TC002 - likewise

from models.errors import DeadlineExceededError, SteelyardError, UnavailableError, UnknownModelError
from models.types import Answer
from serve.connection import BodyBudget, DisconnectGuard, read_body
from serve.context import context_of, put_outcomes, trace_of
from serve.errors import problem_response, row_of
from serve.protocols.native_answer import Outcome, failure, success
from serve.protocols.native_body import ImageBytes, parse_body
from serve.protocols.native_options import Asked, parse_options, parse_query
from serve.protocols.native_schema import DETECT, DETECT_FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models.types import DetectOptions, RequestContext
    from serve.service import Detector, Service
    from serve.settings import Settings

ATTEMPTS: Final = 4
"""Times the images of one request are brought onto one release before the request is answered 503."""

_log = logging.getLogger(__name__)


def engine_of(engines: Mapping[str, Detector], model: str) -> Detector:
    """Return the engine of ``model``. Raises UnknownModelError."""
    try:
        return engines[model]
    except KeyError:
        msg = f"No model named {model[:64]!r} is served here; GET /v1/models lists those that are"
        raise UnknownModelError(msg) from None


class NativeApi:
    """The two detect routes over one service."""

    def __init__(
        self, service: Service, settings: Settings, budget: BodyBudget, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Serve ``service`` within the limits of ``settings``; ``clock`` is that of the request contexts."""
        self._service = service
        self._settings = settings
        self._budget = budget
        self._clock = clock

    def router(self) -> APIRouter:
        """Return the routes with their documentation."""
        router = APIRouter()
        # The handlers take the bare request: FastAPI's own parameter and body handling would parse twice.
        for path, name, extra in (
            ("/v1/detect", "detect_first", DETECT_FIRST),
            ("/v1/models/{model}/detect", "detect", DETECT),
        ):
            router.add_api_route(
                path, self.detect, methods=["POST"], name=name, response_model=None, tags=["detect"], **extra
            )
        return router

    async def detect(self, request: Request) -> Response:
        """Find objects in one or several images."""
        context = context_of(request.scope)
        engine = engine_of(self._service.engines, request.path_params.get("model", self._settings.models[0]))
        trace = trace_of(request.scope)
        if trace is not None:
            engine = trace.around(engine)
        pairs = parse_query(request.scope["query_string"])
        asked = parse_options(pairs)
        with self._budget.lend() as loan:
            body = await read_body(
                request.receive,
                request.headers,
                limit=self._settings.max_body_bytes,
                seconds=context.deadline - self._clock(),
                loan=loan,
            )
            content_type = request.headers.get("content-type", "")
            parsed = await parse_body(body, content_type, max_images=self._settings.max_images)
            del body  # the parts are copies; only they need to stay in memory while the detector runs
            if parsed.options:
                asked = parse_options([*pairs, *parsed.options])
            async with DisconnectGuard(request.receive):
                outcomes = await self._detect_all(engine, parsed.images, asked, context)
        put_outcomes(request.scope, outcomes)
        errors = [outcome for outcome in outcomes if not isinstance(outcome, Answer)]
        if len(errors) == len(outcomes):
            return problem_response(failure(errors), context.request_id)
        return success(outcomes, asked, total_ms=1e3 * (self._clock() - request.scope["steelyard.started"]))

    async def _detect_all(
        self, engine: Detector, images: Sequence[ImageBytes], asked: Asked, context: RequestContext
    ) -> Sequence[Outcome]:
        """Answer all images at the same time, all from one release.

        A swap, or the end of a trial, may fall between two images of one request. Then those that were answered by
        another generation than the newest of the last round are run again, so that the metadata's one version is true
        of every image.
        """
        outcomes: list[Outcome | None] = [image if isinstance(image, SteelyardError) else None for image in images]
        for _ in range(ATTEMPTS):
            names = _names_now(engine)
            options = asked.resolve(names)
            todo = [index for index, outcome in enumerate(outcomes) if outcome is None]
            if len(todo) == 1:
                outcomes[todo[0]] = await self._detect_one(engine, images[todo[0]], options, context)
            else:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        index: group.create_task(self._detect_one(engine, images[index], options, context))
                        for index in todo
                    }
                for index, task in tasks.items():
                    outcomes[index] = task.result()
            stale = _stale(outcomes, todo, names if asked.classes is not None else None)
            if not stale:
                return [outcome for outcome in outcomes if outcome is not None]
            for index in stale:
                outcomes[index] = None
        msg = "The serving version changed several times while this request ran; send it again"
        raise UnavailableError(msg)

    async def _detect_one(
        self, engine: Detector, image: ImageBytes, options: DetectOptions, context: RequestContext
    ) -> Outcome:
        assert isinstance(image, bytes)  # noqa: S101 - unreadable images never reach the engine
        try:
            async with asyncio.timeout(context.deadline - self._clock()):
                return await engine.detect(image, options, context)
        except TimeoutError:
            msg = "The request's time ran out before its answer was ready; allow more time, or send it again later"
            return DeadlineExceededError(msg)
        except Exception as error:  # noqa: BLE001 - one image's failure, whatever it is, must not end the others
            if row_of(type(error)).opaque:
                _log.exception("detection failed", extra={"request_id": context.request_id})
            return error


def _names_now(engine: Detector) -> tuple[str, ...]:
    serving = engine.serving
    if serving is None:
        msg = "The model has no version to answer with yet; try again shortly"
        raise UnavailableError(msg)
    return serving.contract.names


def _stale(outcomes: Sequence[Outcome | None], latest: Sequence[int], names: tuple[str, ...] | None) -> list[int]:
    """Return the images to run again: not answered by the generation that answers now, or under other class names.

    latest: the images of the last round; what they were answered by answers now, even where it is an older generation
    because a trial has ended. names: those that class ids were resolved by; a version may know further ones.
    """
    answers = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Answer)}
    if not answers:
        return []
    told = [answers[index] for index in latest if index in answers] or answers.values()
    current = max(answer.generation for answer in told)
    return [
        index
        for index, answer in answers.items()
        if answer.generation != current or (names is not None and answer.names[: len(names)] != names)
    ]
