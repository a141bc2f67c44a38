"""What counts as in use: every source that may know of a version."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import ReleaseRejectedError
from models.rollout.messages import Target
from models.rollout.policy import Pin, encode_pin
from models.weights.cache import Committed
from models.weights.registry import READY, Desired
from models.weights.retention import InUse
from serve.in_use import digests_of, of_record, of_registry, of_rollout

PIN = encode_pin(Pin(Target("1", "11", "p"), ("q", "3")))
RECORD = Committed("m", 7, "3", "33", "2", "22", PIN)


def state(**changes: Any) -> Any:
    """Return a rollout in which version 3 serves and 4 is on its way."""
    replicas = [{"id": "a", "version": "3", "state": "serving"}, {"id": "b", "version": "2", "state": "dead"}]
    return {"model": "m", "desired": "4", "serving": "3", "generation": 7, "replicas": replicas} | changes


def test_the_record_knows_serving_previous_and_pinned() -> None:
    """By version for the registry, by digest for the cache."""
    use = of_record(RECORD)
    assert (use.serving, use.previous, use.pinned) == (frozenset("3"), frozenset("2"), frozenset("1"))
    assert digests_of(RECORD) == {"11", "22", "33"}
    assert of_record(None) == InUse()
    assert digests_of(Committed("m", 1, "3", "33", pin="nonsense")) == {"33"}
    assert of_record(Committed("m", 1, "3", "33")) == InUse(serving=frozenset("3"))


def test_the_registry_knows_what_is_desired_and_what_a_fleet_recorded() -> None:
    """Also of a fleet elsewhere that shares the registry."""
    use = of_registry(Desired("m", "5", "55", READY, "p"), "3")
    assert (use.desired, use.serving) == (frozenset("5"), frozenset("3"))
    assert of_registry(None, None) == InUse()


def test_the_service_knows_what_its_replicas_hold() -> None:
    """Desired, serving, and whatever any replica still has."""
    use = of_rollout(state(), RECORD)
    assert (use.serving, use.desired, use.candidates) == (frozenset("3"), frozenset("4"), frozenset("23"))
    assert of_rollout(state(generation=0, serving=None, desired=None, replicas=[]), None) == InUse()


@pytest.mark.parametrize("record", [None, Committed("m", 6, "2", "22")])
def test_the_record_of_another_home_is_not_believed(record: Committed | None) -> None:
    """What a rollback returns to would be unknown, so nothing may be deleted."""
    with pytest.raises(ReleaseRejectedError, match="where the service's home is"):
        of_rollout(state(), record)
