"""The book of keys' limits in the rollout actor's process. It works only when a replica with limited keys reports."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from models.quota.book import QuotaBook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from models.quota.messages import Grant, Report

_log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Least time between two looks for dead replicas (seconds)."""
NAMES_DEADLINE_S: Final = 5.0


class QuotaDesk:
    """Its methods belong to one event loop's thread."""

    def __init__(
        self,
        *,
        names: Callable[[], Collection[str] | None],
        in_thread: Callable[..., Awaitable[Any]],
        replicas: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open a new book.

        names: returns the live replicas, None where it cannot tell; blocks, so it is called ``in_thread``.
        replicas: returns how many the service has, as far as known. clock: monotonic seconds.
        """
        self._names, self._in_thread, self._replicas, self._clock = names, in_thread, replicas, clock
        self._book = QuotaBook(clock())
        self._look: asyncio.Task[None] | None = None
        self._looked = clock()

    def take(self, report: Report) -> Grant:
        """Note a report and answer it; look for the dead where one holds what the replica is refused."""
        now = self._clock()
        grant = self._book.take(report, self._replicas(), now)
        if any(each.contended for each in grant.allowances) and now - self._looked >= LOOK_S:
            suspects = self._book.suspects(now)
            if suspects and (self._look is None or self._look.done()):
                self._looked = now
                self._look = asyncio.get_running_loop().create_task(self._bury(suspects))
        return grant

    async def _bury(self, suspects: frozenset[str]) -> None:
        try:
            alive = await asyncio.wait_for(self._in_thread(self._names), NAMES_DEADLINE_S)
        except Exception as error:  # noqa: BLE001 - whatever failed, it proves no death
            _log.info("cannot tell whether silent replicas are alive: %s", error)
            return
        if alive is not None:
            self._book.bury(suspects.difference(alive), self._clock())
