"""Tasks that must not die silently: each is watched, and what ended one is kept for the health check to tell."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine
    from typing import Any

_log = logging.getLogger(__name__)

CANCEL_AGAIN_S: Final = 0.1
"""Time after which a task that goes on is cancelled once more (seconds)."""


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
        await end_tasks(tasks)


async def end_tasks(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` until each has ended, whatever it ends with.

    Once is not enough: before Python 3.12 ``asyncio.wait_for`` swallows a cancellation that arrives together with the
    result it waits for (CPython issue 86296), and the loop around it goes on.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody warns of it


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _log.error("a task that must go on has ended", exc_info=task.exception(), extra={"reason": task.get_name()})
