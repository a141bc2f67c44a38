"""The registry in other hands: the alias is moved in MLflow itself, and the service is told as MLflow's webhook tells.

MLflow lives in a process of its own, so that its seconds of imports and its database stay out of the clients' clock.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import releases

from models.weights.registry import PRODUCTION
from serve.webhook import ENTITY, sign

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

HOOK = "/v1/hooks/mlflow"


class Hand:
    """Moves the production alias of the service with this home; a context manager."""

    def __init__(self, home: Path, secret: str) -> None:
        """Start no process yet. secret: of the service's webhook."""
        self._home, self._secret = str(home), secret
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Self:
        """Open the registry, which takes seconds."""
        self._pool.submit(_open, self._home).result()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)

    async def move(self, version: str) -> float:
        """Move the alias to ``version``; return the moment just before, on the wall clock. Raises RegistryError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _move, self._home, version)

    async def tell(self, client: httpx.AsyncClient, version: str) -> httpx.Response:
        """Send the webhook of a moved alias; return the service's answer. Raises httpx.HTTPError."""
        headers, body = delivery(self._secret, version)
        return await client.post(HOOK, content=body, headers=headers)


def delivery(secret: str, version: str) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a delivery that says that the alias moved to ``version``."""
    data = {"name": releases.MODEL, "alias": PRODUCTION, "version": version}
    event = {"entity": ENTITY, "action": "created", "timestamp": datetime.now(UTC).isoformat(), "data": data}
    body, ident, sent = json.dumps(event).encode(), uuid.uuid4().hex, str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-MLflow-Signature": sign(secret, ident, sent, body),
        "X-MLflow-Delivery-Id": ident,
        "X-MLflow-Timestamp": sent,
    }
    return headers, body


@cache
def _registry(home: str) -> Any:
    from models.weights.mlflow_registry import MlflowRegistry  # noqa: PLC0415 - takes seconds, in its own process
    from serve.settings import load_settings  # noqa: PLC0415 - only this needs it

    return MlflowRegistry(load_settings(home=home).tracking_uri)


def _open(home: str) -> None:
    # The first question takes the seconds, not the first move.
    _registry(home).versions(releases.MODEL)


def _move(home: str, version: str) -> float:
    registry = _registry(home)
    begun = time.time()
    registry.promote(releases.MODEL, version, promotion=uuid.uuid4().hex, reason="moved by hand")
    return begun
