"""An event loop whose time flies: timers fire as soon as nothing else is to do. For tests."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

T = TypeVar("T")

PATIENCE_S = 0.0005
"""Real seconds given to sockets before time moves on. Worker threads get all the time they need."""

TURN_S = 1e-6
"""Seconds that a turn of the loop takes: a deadline closer than the clock's resolution must come, too."""


class _FlyingSelector(selectors.SelectSelector):
    """Waits hardly at all and keeps the time: the sum of what it was asked to wait, and ``TURN_S`` a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.monotonic()
        self.working = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; where nothing is, let ``timeout`` seconds have passed."""
        self.now += TURN_S
        if self.working or timeout is None:
            begun = time.monotonic()
            ready = super().select(timeout)
            took = time.monotonic() - begun
            # A machine that stands still for seconds may bring the next timer, never skip one.
            self.now += took if timeout is None else min(took, timeout)
            return ready
        ready = super().select(min(timeout, PATIENCE_S))
        if not ready:
            self.now += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it waits: code takes next to none, however slow the machine is."""

    def __init__(self) -> None:
        """Start at the clock's time."""
        self._flying = _FlyingSelector()
        super().__init__(self._flying)

    def time(self) -> float:
        """Return the moment in seconds, monotonic."""
        return self._flying.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run ``func`` on a worker thread; until it ends, time passes no faster than outside."""
        self._flying.working += 1
        work = super().run_in_executor(executor, func, *args)
        work.add_done_callback(self._ended)
        return work

    def _ended(self, _: asyncio.Future[T]) -> None:
        self._flying.working -= 1


def run(work: Coroutine[Any, Any, T], *, limit_s: float = 3600.0) -> T:
    """Run ``work`` on a FakeTimeLoop and return its result; raises TimeoutError after ``limit_s`` of its time."""
    loop = FakeTimeLoop()
    try:
        return loop.run_until_complete(asyncio.wait_for(work, limit_s))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
