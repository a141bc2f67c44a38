"""Lets time pass for the rollout of one model, and looks for replicas that have died.

A death is proven by a name that is gone from the list of live actors; no list, or silence, proves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from models.rollout import state
from serve.polls import BUSY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from serve.polls import Polls

_log = logging.getLogger(__name__)

TICK_S: Final = 0.5
BUSY_TICK_S: Final = 0.05
"""Time between two ticks of the machine (seconds), the second while something is under way."""
LOOK_S: Final = 2.0
BUSY_LOOK_S: Final = 0.5
"""Least time between two looks for deaths (seconds), the second while something is under way."""
NAMES_DEADLINE_S: Final = 5.0


class FailureDetector:
    """One loop: ``run``."""

    def __init__(
        self,
        model: str,
        *,
        now: Callable[[], state.State],
        feed: Callable[[state.Event], None],
        polls: Polls,
        names: Callable[[], Collection[str] | None],
        in_thread: Callable[..., Awaitable[Any]],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Look at nothing yet. names: returns the live actors, None where it cannot tell; blocks, so ``in_thread``."""
        self._model, self._now, self._feed, self._polls = model, now, feed, polls
        self._names, self._in_thread, self._clock, self._sleep = names, in_thread, clock, sleep

    async def run(self) -> None:
        """Feed a tick at every interval and every death that is found, for ever."""
        looked = self._clock()
        while True:
            busy = self._now().phase in BUSY
            await self._sleep(BUSY_TICK_S if busy else TICK_S)
            self._feed(state.Tick())
            moment = self._clock()
            if moment - looked >= (BUSY_LOOK_S if busy else LOOK_S):
                looked = moment
                await self._look()

    async def _look(self) -> None:
        members = [*self._now().members, *self._now().trying]
        if not members:
            return
        try:
            names = await asyncio.wait_for(self._in_thread(self._names), NAMES_DEADLINE_S)
        except Exception as error:  # noqa: BLE001 - whatever failed, it proves no death
            _log.info("cannot tell which replicas of %s are alive: %s", self._model, error)
            return
        for replica in members if names is not None else ():
            if replica not in names:
                self._feed(state.MemberDied(replica))
                self._polls.died(replica)
        self._polls.forget_strangers()
