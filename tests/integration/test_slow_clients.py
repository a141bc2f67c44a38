"""Slow clients cost the others nothing, and do not stay. The long measurement is ``loadtest/slow_clients.py``'s."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models import demo
from serve.connection import STALL_S
from serve.haproxy import CLIENT_TIMEOUT_S, HEADER_TIMEOUT_S

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loadtest"))

import framing
import slow_clients
import uvloop

if TYPE_CHECKING:
    from running import Service

pytestmark = pytest.mark.long

CLIENTS = 200
SECONDS = float(os.environ.get("STEELYARD_SLOW_SECONDS", "12"))
"""Of the slow part; 60 is the issue's measure, 12 is CI's sample."""
RATE = 6.0
FULL_S = 60.0
ROUNDS = 3 if SECONDS >= FULL_S else 1
MARGIN_S = 5.0


@pytest.mark.timeout(ROUNDS * (2 * SECONDS + 90) + 60)
def test_slow_clients_cost_the_others_nothing_and_are_ended(service: Service) -> None:
    """200 send nothing, half a request or a byte a second: all are ended, and for a minute the others hardly notice."""
    request = framing.build(demo.SAMPLE_TRAY.read_bytes(), framing="raw", host="slow", path="/v1/detect")
    found = uvloop.run(
        slow_clients.measure(service.url, request, clients=CLIENTS, seconds=SECONDS, rate=RATE, rounds=ROUNDS)
    )
    told = slow_clients.show(found)
    assert not found.failures, told
    assert not found.slow.left, told
    assert set(found.slow.ended) == set(slow_clients.KINDS), told
    # The replica refuses a body that stalls, and HAProxy ends a client that stays silent even then.
    assert max(found.slow.longest_s.values()) < max(HEADER_TIMEOUT_S, STALL_S + CLIENT_TIMEOUT_S) + MARGIN_S, told
    # A sample has too few answers for a p99; of the full measure it is demanded.
    ratio = found.ratio()
    assert ratio is not None
    assert SECONDS < FULL_S or ratio <= slow_clients.GOAL, told
