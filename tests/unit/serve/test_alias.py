"""Reading the alias where the registry hangs; whole rollouts are in test_reconciler.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import RegistryError
from models.weights.fake_registry import FakeRegistry
from models.weights.registry import Desired
from serve.alias import Alias
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.prometheus import PrometheusSink
from serve.rollout_metrics import RolloutMetrics

if TYPE_CHECKING:
    from collections.abc import Callable


class Place:
    """An alias whose registry answers when a test says so. submitted: calls given to a thread so far."""

    def __init__(self) -> None:
        """Build it; call inside a running loop."""
        self.heard: list[Desired | None] = []
        self.submitted = 0
        self.answer = asyncio.Event()
        self.down = False
        self.sink = PrometheusSink()
        clock = asyncio.get_running_loop().time
        self.metrics = RolloutMetrics(self.sink, clock=clock)
        self.alias = Alias(
            "m",
            FakeRegistry(),
            heard=self.heard.append,
            in_thread=self._in_thread,
            faults=FaultPoints(allowed=False),
            poll_interval_s=1.0,
            sleep=asyncio.sleep,
            clock=clock,
            observer=self.metrics.of("m"),
        )

    async def _in_thread(self, call: Callable[..., Any], *_: object, **__: object) -> Desired:
        assert call.__name__ == "desired"
        self.submitted += 1
        mine = self.submitted
        # As a thread, it goes on after its caller has given up; a cancellation reaching it would be a defect.
        await self.answer.wait()
        if self.down:
            msg = "The registry is down."
            raise RegistryError(msg)
        return Desired("m", str(mine), "d", "ready", "p")


def test_a_hanging_registry_occupies_one_thread_however_often_it_is_asked() -> None:
    """Each reading ends at its deadline; no new one is begun before the thread of the last is back."""

    async def story() -> None:
        place = Place()
        for _ in range(3):
            with pytest.raises(RegistryError, match="in time"):
                await place.alias.read()
        assert place.submitted == 1
        place.answer.set()
        await place.alias.read()
        assert place.submitted == 2
        assert [found.version for found in place.heard if found] == ["2"], "an old answer is never taken for a new one"

    run(story())


def test_a_caller_with_less_patience_leaves_the_reading_to_itself() -> None:
    """Cancelling a reading neither cancels its thread nor begins a second one."""

    async def story() -> None:
        place = Place()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(place.alias.read(), 2.0)
        assert place.submitted == 1
        place.answer.set()
        await place.alias.read()
        assert place.submitted == 2

    run(story())


def test_how_old_the_knowledge_is_can_be_asked_at_any_time() -> None:
    """Nothing known, never reached, reached, lost again; failures are counted, for people and for Prometheus."""

    async def story() -> None:
        place = Place()
        place.answer.set()
        assert place.alias.status() == {"reachable": None, "age_s": None, "failures": 0, "reason": None}
        place.down = True
        for _ in range(2):
            with pytest.raises(RegistryError):
                await place.alias.read()
        assert place.alias.status() == {
            "reachable": False,
            "age_s": None,
            "failures": 2,
            "reason": "The registry is down.",
        }
        place.down = False
        await asyncio.sleep(30.0)
        await place.alias.read()
        await asyncio.sleep(20.0)
        found = place.alias.status()
        assert found == {"reachable": True, "age_s": pytest.approx(20.0, abs=0.5), "failures": 2, "reason": None}
        place.metrics.refresh()
        text = place.sink.render().decode()
        assert 'steelyard_registry_read_failures_total{model="m"} 2.0' in text
        assert 'steelyard_registry_age_seconds{model="m"} 20.' in text
        place.down = True
        with pytest.raises(RegistryError):
            await place.alias.read()
        found = place.alias.status()
        assert not found["reachable"]
        assert found["age_s"] == pytest.approx(20.0, abs=0.5)

    run(story())
