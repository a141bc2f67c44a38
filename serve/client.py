"""A small synchronous client of the native API: what ``steelyard detect`` uses and what programs may import.

with SteelyardClient("http://127.0.0.1:8000") as client:
    answer = client.detect(Path("tray.jpg").read_bytes())
    for box in answer.boxes:
        print(box.name, box.confidence)
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

import httpx

from models.errors import InvalidOptionError
from models.rollout.order import PLAIN, to_document
from serve.client_answers import (
    Box,
    DetectAnswer,
    ModelRow,
    ReplicaRow,
    Rollout,
    ServiceError,
    VersionRow,
    json_object,
    listed,
    problem,
    read_answer,
)
from serve.settings import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from models.rollout.order import Order

__all__ = ["Box", "DetectAnswer", "ModelRow", "ReplicaRow", "Rollout", "ServiceError", "SteelyardClient", "VersionRow"]

_UNAVAILABLE = 503
_LONGEST_PAUSE_S = 10.0
_SIGNATURES = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png"))


class SteelyardClient:
    """A connection to one service; a context manager. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare a client of the service at ``url``; nothing is sent yet.

        Args:
            url: where the service listens, e.g. ``http://127.0.0.1:8000``.
            key: the API key; None takes the one of ``STEELYARD_API_KEY`` in the environment, if any.
            timeout: seconds that each step of one try (connect, send, wait for bytes) may take.
            retries: further tries of a detection after a broken connection or a 503; detection is idempotent.
            transport: replaces the network, in tests.
            sleep: replaces ``time.sleep``, in tests.

        Raises:
            InvalidOptionError: ``url`` is not an http or https address.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            msg = f"{url!r} is not the address of a service; give one such as http://127.0.0.1:8000"
            raise InvalidOptionError(msg)
        key = key or os.environ.get("STEELYARD_API_KEY")
        self.url = url.rstrip("/")
        self._retries = retries
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            transport=transport,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # A proxy of the environment cannot know this machine's own loopback.
            trust_env=not is_loopback(parsed.host),
        )

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; calling it again does nothing."""
        self._http.close()

    def detect(
        self,
        image: bytes,
        *,
        model: str | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        classes: Collection[int] | None = None,
    ) -> DetectAnswer:
        """Return what ``model`` (None: the service's first one) sees in one encoded image.

        Args:
            image: the bytes of a JPEG, PNG or WebP file.
            model: name of the model, None for the first one.
            conf: least confidence (0 to 1), None for the release's default.
            iou: overlap (0 to 1) above which raw-head models suppress the lesser box, None for the default.
            max_det: most boxes (1 to 300), None for the default.
            classes: class ids to keep, None for all.

        Raises:
            ServiceError: the service refused or failed, or stayed out of reach through all tries.
        """
        options: dict[str, str | int | float] = {
            name: value for name, value in (("conf", conf), ("iou", iou), ("max_det", max_det)) if value is not None
        }
        if classes is not None:
            options["classes"] = ",".join(str(number) for number in sorted(classes))
        path = "/v1/detect" if model is None else f"/v1/models/{quote(model, safe='')}/detect"
        body = self._send(
            "POST", path, retries=self._retries, params=options, content=image, headers={"Content-Type": _media(image)}
        )
        return read_answer(body)

    def models(self) -> list[ModelRow]:
        """Return the models that the service serves. Raises ServiceError."""
        return cast("list[ModelRow]", listed(self._get("/v1/models"), "models"))

    def versions(self, model: str) -> list[VersionRow]:
        """Return all registered versions of ``model``, oldest first. Raises ServiceError."""
        return cast("list[VersionRow]", listed(self._get(f"/v1/models/{quote(model, safe='')}/versions"), "versions"))

    def rollout(self, model: str) -> Rollout:
        """Return desired, serving and every replica's state. Raises ServiceError."""
        return cast("Rollout", self._get(f"/v1/models/{quote(model, safe='')}/rollout"))

    def promote(self, model: str, version: str, *, reason: str | None = None, order: Order = PLAIN) -> dict[str, Any]:
        """Name ``version`` the desired one and return the service's word on it; the rollout then takes its time.

        Sent once only: it changes state. Raises ServiceError.

        Args:
            model: name of the model.
            version: as the registry counts it.
            reason: why, for whoever reads the audit later.
            order: which gates are waived and which trials come before the commit.
        """
        body: dict[str, Any] = {"version": version}
        if reason is not None:
            body["reason"] = reason
        if order != PLAIN:
            body["order"] = to_document(order)
        return self._send("POST", f"/v1/models/{quote(model, safe='')}/promote", json=body)

    def rollback(self, model: str) -> dict[str, Any]:
        """Go back to the version that served before, and return the service's word on it. Raises ServiceError."""
        return self._send("POST", f"/v1/models/{quote(model, safe='')}/rollback")

    def _get(self, path: str) -> dict[str, Any]:
        return self._send("GET", path, retries=self._retries)

    def _send(self, method: str, path: str, *, retries: int = 0, **request: Any) -> dict[str, Any]:
        for last in (*(False,) * retries, True):
            try:
                return self._once(method, path, **request)
            except ServiceError as error:
                broken = error.status is None and error.code == "unreachable"
                if last or not (broken or error.status == _UNAVAILABLE):
                    raise
                pause = 0.2 if error.retry_after_s is None else error.retry_after_s
                self._sleep(min(pause, _LONGEST_PAUSE_S))
        raise AssertionError  # the last turn of the loop returns or raises

    def _once(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TimeoutException:
            msg = f"{self.url} did not answer in time; try again, or give it longer"
            raise ServiceError(msg, code="timeout") from None
        except httpx.HTTPError:
            msg = f"no service answers at {self.url}; start one with: steelyard serve"
            raise ServiceError(msg, code="unreachable") from None
        if response.is_success:
            body = json_object(response)
            if body is None:
                msg = f"{self.url} answered {response.status_code} with something else than JSON; is it Steelyard?"
                raise ServiceError(msg, code="bad_answer", status=response.status_code)
            return body
        raise problem(response)


def _media(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return next((media for signature, media in _SIGNATURES if image.startswith(signature)), "application/octet-stream")
