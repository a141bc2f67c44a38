"""The judge of I7 in the swap tests must itself see a breach."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "integration_clients", Path(__file__).parents[1] / "integration" / "clients.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
clients = importlib.util.module_from_spec(_SPEC)
sys.modules["integration_clients"] = clients
_SPEC.loader.exec_module(clients)


def _exchange(client: int, sent: float, answered: float, generation: int) -> object:
    return clients.Exchange(client, sent, answered, 200, str(generation), generation)


def test_a_request_sent_after_a_newer_answer_may_not_get_an_older_one() -> None:
    """A later request of another client answered by a lower generation is reported."""
    newer = _exchange(0, 0.0, 1.0, 2)
    older = _exchange(1, 1.1, 1.5, 1)
    assert [(newer, older)] == clients.regressions([older, newer])


def test_answers_in_flight_at_the_flip_are_no_regression() -> None:
    """A request sent before the newer answer was received may still be answered by the older generation."""
    newer = _exchange(0, 0.0, 1.0, 2)
    in_flight = _exchange(1, 0.9, 1.5, 1)
    assert clients.regressions([in_flight, newer]) == []
