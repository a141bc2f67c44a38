"""What the fault tests ask of a service over HTTP beyond what every test does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from planting import MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from running import Service


def promote(service: Service, version: str, order: Mapping[str, Any] | None = None) -> None:
    """Ask for ``version``, under ``order`` where one is given, without waiting for the replicas."""
    body = {"version": version} | ({"order": dict(order)} if order else {})
    answer = httpx.post(f"{service.url}/v1/models/{MODEL}/promote", json=body, timeout=30)
    assert answer.status_code == 200, answer.text


def roll_back(service: Service) -> dict[str, Any]:
    """Return to the version before and wait, some seconds at most, until it serves."""
    answer = httpx.post(f"{service.url}/v1/models/{MODEL}/rollback", timeout=60)
    assert answer.status_code == 200, answer.text
    state: dict[str, Any] = answer.json()
    return state
