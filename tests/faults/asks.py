"""What the fault tests ask of a service over HTTP beyond what every test does."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Self

import httpx
from planting import MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from running import Service


def promote(service: Service, version: str, order: Mapping[str, Any] | None = None, *, answered: bool = True) -> None:
    """Ask for ``version``, under ``order`` where one is given, without waiting for the replicas.

    answered: False where the process that would answer may die of it.
    """
    body = {"version": version} | ({"order": dict(order)} if order else {})
    answer = httpx.post(f"{service.url}/v1/models/{MODEL}/promote", json=body, timeout=30)
    assert answer.status_code in ((200,) if answered else (200, 503)), answer.text


def roll_back(service: Service, *, answered: bool = True) -> dict[str, Any]:
    """Return to the version before and wait, some seconds at most, until it serves; ``answered`` as in ``promote``."""
    answer = httpx.post(f"{service.url}/v1/models/{MODEL}/rollback", timeout=60)
    assert answer.status_code in ((200,) if answered else (200, 503)), answer.text
    state: dict[str, Any] = answer.json()
    return state


class NamedClients:
    """One thread that posts for many clients in turn, each with its ``X-Client-Id``, so that a canary can follow."""

    def __init__(self, service: Service) -> None:
        """Post nothing before the block begins."""
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._post, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout=40)

    def _post(self) -> None:
        with httpx.Client(timeout=30) as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                try:
                    client.post(
                        f"{self._service.url}/v1/detect",
                        content=self._service.tray,
                        headers={"Content-Type": "image/jpeg", "X-Client-Id": f"client-{number % 50}"},
                    )
                except httpx.HTTPError:
                    continue
