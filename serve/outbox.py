"""Writes to the registry that nobody waits for: few at a time, each with a deadline and a bounded number of tries."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from models.errors import SteelyardError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

SETTLE_S: Final = 0.1
"""How long after a decision everything waits that can (seconds): replicas hold until they hear it, and threads that
write in the same process delayed that by 15 ms."""
MOST_LETTERS: Final = 256
DEADLINE_S: Final = 15.0
MOST_TRIES: Final = 6
PAUSE_S: Final = 2.0
"""Wait after the first failure in a row (seconds); each further one doubles it, up to LONGEST_PAUSE_S."""
LONGEST_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One write. what: for the log. call: blocks; may raise SteelyardError, and may be repeated.

    sent, lost: called once, in the end.
    """

    what: str
    call: Callable[[], object]
    sent: Callable[[], None]
    lost: Callable[[], None]


class Outbox:
    """Holds letters until ``run`` has written them; a letter that fails makes way for the others."""

    def __init__(self, *, in_thread: Callable[..., Awaitable[Any]], sleep: Callable[[float], Awaitable[None]]) -> None:
        """Start empty. in_thread: runs a blocking call of the registry."""
        self._in_thread, self._sleep = in_thread, sleep
        self._letters: deque[tuple[Letter, int]] = deque()
        self._there = asyncio.Event()
        self._writing: asyncio.Future[Any] | None = None

    def post(self, letter: Letter) -> None:
        """Take a letter; where too many wait, the oldest is lost."""
        if len(self._letters) >= MOST_LETTERS:
            oldest, _ = self._letters.popleft()
            self._lose(oldest, "too much waits for the registry")
        self._letters.append((letter, 1))
        self._there.set()

    async def run(self) -> None:
        """Write what is posted, for ever."""
        failures = 0
        while True:
            if not self._letters:
                self._there.clear()
                await self._there.wait()
                await self._sleep(SETTLE_S)
            letter, tries = self._letters.popleft()
            trouble = await self._write(letter)
            if trouble is None:
                failures = 0
                letter.sent()
                continue
            failures += 1
            if tries < MOST_TRIES:
                self._letters.append((letter, tries + 1))
            else:
                self._lose(letter, trouble)
            await self._sleep(min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** min(failures - 1, 30)))

    async def _write(self, letter: Letter) -> str | None:
        """Return None when it is written, else what went wrong."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                # A thread cannot be cancelled: while the last write's still hangs, one more would occupy one more.
                if self._writing is not None:
                    await asyncio.wait({self._writing})
                self._writing = asyncio.ensure_future(self._in_thread(letter.call))
                self._writing.add_done_callback(lambda write: write.cancelled() or write.exception())
                await asyncio.shield(self._writing)
        except TimeoutError:
            return "the registry did not answer in time"
        except SteelyardError as error:
            return str(error)
        except Exception:  # noqa: BLE001 - the other letters must still be written
            _log.exception("%s could not be written", letter.what)
            return "the log tells why"
        return None

    @staticmethod
    def _lose(letter: Letter, why: str) -> None:
        _log.warning("the registry will not hold %s, the audit file does: %s", letter.what, why)
        letter.lost()
