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

if TYPE_CHECKING:
    from collections.abc import Callable


class Place:
    """An alias whose registry answers when a test says so. submitted: calls given to a thread so far."""

    def __init__(self) -> None:
        """Build it; call inside a running loop."""
        self.heard: list[Desired | None] = []
        self.submitted = 0
        self.answer = asyncio.Event()
        self.alias = Alias(
            "m",
            FakeRegistry(),
            heard=self.heard.append,
            in_thread=self._in_thread,
            faults=FaultPoints(allowed=False),
            poll_interval_s=1.0,
            sleep=asyncio.sleep,
        )

    async def _in_thread(self, call: Callable[..., Any], *_: object, **__: object) -> Desired:
        assert call.__name__ == "desired"
        self.submitted += 1
        mine = self.submitted
        # As a thread, it goes on after its caller has given up; a cancellation reaching it would be a defect.
        await self.answer.wait()
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
