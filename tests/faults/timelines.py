"""When each replica of a service flipped, from what the replicas log; moments are seconds of the wall clock."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from running import Service


def flips(service: Service, generation: int, *, replicas: int, within_s: float = 10.0) -> list[float]:
    """Wait until so many replicas have flipped to ``generation``; return the moments, ascending."""
    deadline = time.monotonic() + within_s
    found: list[float] = []
    while len(found) < replicas:
        assert time.monotonic() < deadline, f"{len(found)} of {replicas} replicas flipped to generation {generation}"
        time.sleep(0.02)  # the service under test lives in real time
        found = [
            moment(line["ts"])
            for path in (service.home / "logs").glob("*/replica-*.log")
            for line in _lines(path.read_bytes())
            if line.get("message") == "flipped" and line.get("generation") == generation
        ]
    return sorted(found)


def moment(text: str) -> float:
    """Return the seconds since 1970 of a time in ISO 8601."""
    return datetime.fromisoformat(text).timestamp()


def _lines(log: bytes) -> list[dict[str, Any]]:
    # The last line may be half written.
    whole = [line for line in log[: log.rfind(b"\n") + 1].splitlines() if b'"flipped"' in line]
    return [json.loads(line) for line in whole]
