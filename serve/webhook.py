"""MLflow's webhooks: whether a delivery is genuine, fresh and new, and what it says of an alias. Pure.

Format of MLflow 3.17 (``mlflow.webhooks.delivery``), which follows Standard Webhooks: the header ``X-MLflow-Signature``
is ``v1,`` and the base64 of HMAC-SHA256 over ``<delivery id>.<unix seconds>.<body>`` under the secret. A delivery that
is tried again carries the same id, time and body.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from models.weights.registry import PRODUCTION
from serve.errors import InvalidBodyError, SignatureError, StaleDeliveryError

if TYPE_CHECKING:
    from collections.abc import Mapping

TOLERANCE_S: Final = 300.0
"""How far the sender's clock may be from ours, either way (seconds)."""
MOST_DELIVERIES: Final = 4096
"""Delivery ids that are remembered at once."""
MOST_SIGNATURES: Final = 8
"""Signatures in one header that are looked at; senders that rotate a secret send two."""
ENTITY: Final = "model_version_alias"
_VERSION: Final = "v1,"
_ID: Final = re.compile(r"[!-~]{1,128}")
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One genuine delivery. sent: by the sender's clock (unix seconds)."""

    ident: str
    sent: float


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """What a delivery says: the alias of the model was set or removed."""

    model: str
    alias: str


def sign(secret: str, ident: str, timestamp: str, body: bytes) -> str:
    """Return the signature header of a delivery, as MLflow computes it."""
    content = f"{ident}.{timestamp}.".encode() + body
    return _VERSION + base64.b64encode(hmac.digest(secret.encode(), content, hashlib.sha256)).decode()


def verify(headers: Mapping[str, str], body: bytes, *, secret: str, now: float) -> Delivery:
    """Return the delivery that these headers and this body are.

    headers: by lower-case name. now: our clock (unix seconds).
    Raises SignatureError where a header is missing or nothing fits, StaleDeliveryError where the time does not.
    """
    ident, timestamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    given = headers.get("x-mlflow-signature", "")
    if not (_ID.fullmatch(ident) and _TIMESTAMP.fullmatch(timestamp) and given):
        msg = "The delivery is not signed; give MLflow's webhook the secret that this service has"
        raise SignatureError(msg)
    wanted = sign(secret, ident, timestamp, body).encode()
    # All are compared, whichever fits, so that the time taken tells nothing.
    fits = [hmac.compare_digest(one.encode(errors="replace"), wanted) for one in given.split(" ")[:MOST_SIGNATURES]]
    if not any(fits):
        msg = "The signature does not fit the delivery; give MLflow's webhook the secret that this service has"
        raise SignatureError(msg)
    away = now - float(timestamp)
    if abs(away) > TOLERANCE_S:
        when = "ago" if away > 0 else "in the future"
        msg = (
            f"The delivery was signed {abs(away):.0f} s {when}, and {TOLERANCE_S:.0f} s are allowed; set both "
            "machines' clocks"
        )
        raise StaleDeliveryError(msg)
    return Delivery(ident, float(timestamp))


def read_event(body: bytes) -> AliasMoved | None:
    """Return what a genuine body says of an alias, None where it is about something else. Raises InvalidBodyError."""
    try:
        document: Any = orjson.loads(body)
        if document["entity"] != ENTITY:
            return None
        model, alias = document["data"]["name"], document["data"]["alias"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        model = alias = None
    if not isinstance(model, str) or not isinstance(alias, str):
        msg = (
            "The body is not an event of MLflow's model registry; subscribe the webhook to model_version_alias.created"
        )
        raise InvalidBodyError(msg)
    return AliasMoved(model, alias)


def concerns(event: AliasMoved | None) -> bool:
    """Return whether the event may change what is desired."""
    return event is not None and event.alias == PRODUCTION


class Deliveries:
    """Remembers deliveries for as long as they could be sent again. Bounded, and never forgets one that still fits.

    Where ids run out, the oldest goes and everything sent as early as it counts as taken, too.
    """

    def __init__(self, limit: int = MOST_DELIVERIES) -> None:
        """Remember up to ``limit`` >= 1 ids."""
        self._limit = limit
        self._known: set[str] = set()
        self._by_time: list[tuple[float, str]] = []
        self._floor = float("-inf")

    def __len__(self) -> int:
        return len(self._known)

    def take(self, delivery: Delivery, now: float) -> bool:
        """Return whether ``delivery`` is new, and remember it. now: our clock (unix seconds)."""
        oldest = now - TOLERANCE_S
        while self._by_time and self._by_time[0][0] < oldest:
            self._forget()
        # Too old is known from the time alone, also where another machine's clock let it pass.
        if delivery.ident in self._known or delivery.sent <= self._floor or delivery.sent < oldest:
            return False
        if len(self._by_time) >= self._limit:
            self._floor = max(self._floor, self._forget())
            if delivery.sent <= self._floor:
                return False
        heapq.heappush(self._by_time, (delivery.sent, delivery.ident))
        self._known.add(delivery.ident)
        return True

    def _forget(self) -> float:
        sent, ident = heapq.heappop(self._by_time)
        self._known.discard(ident)
        return sent
