"""Tasks that must not die silently: each is watched, and what ended one is kept for the health check to tell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs tasks that are meant to go on until ``stop``."""

    def __init__(self) -> None:
        """Run nothing yet."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` as a task of that name on the running loop."""
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(_report)

    def failure(self) -> str | None:
        """Return which task has ended, though none may, or None."""
        for name, task in self._tasks.items():
            if task.done():
                return f"{name} has stopped"
        return None

    async def stop(self) -> None:
        """End all tasks and wait for them; afterwards none counts as failed."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _log.error("a task that must go on has ended", exc_info=task.exception(), extra={"reason": task.get_name()})
