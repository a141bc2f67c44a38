"""The two loads: a closed loop of N clients, and an open loop whose sends follow a Poisson clock.

Everything is bounded: the number of requests, the duration, the connections, and the wait for every answer.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import httptools
from connection import OK, Connection, ConnectionBrokenError, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PAUSE_S = 0.05
"""A client rests so long after a failure or a refusal: a closed loop must not turn into a busy one."""


class Exchange(NamedTuple):
    """One request.

    due: second of the run at which it was to be sent; in a closed loop, at which it was sent.
    late_s: seconds from then until a connection took it. seconds: from ``due`` to the answer's last byte.
    """

    due: float
    late_s: float
    seconds: float
    outcome: Outcome


@dataclass(slots=True)
class Target:
    """Where requests go: host, TCP port, TLS or not, and seconds that one request may take, connecting included."""

    host: str
    port: int
    tls: bool = False
    timeout_s: float = 60.0


@dataclass(slots=True)
class Pool:
    """Up to ``most`` connections to ``target``; the one used last is taken first, so that idle ones die in peace."""

    target: Target
    most: int
    opened: int = 0
    _idle: list[Connection] = field(default_factory=list)
    _room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        """Make room."""
        self._room = asyncio.Semaphore(self.most)

    async def exchange(self, request: bytes, taken: Callable[[], None]) -> Outcome:
        """Send ``request`` on a free connection, waiting for one if need be; no error leaves but a cancellation.

        taken: called when a connection is about to send it.
        """
        try:
            async with asyncio.timeout(self.target.timeout_s), self._room:
                connection = await self._take()
                taken()
                outcome = await connection.exchange(request)
                if connection.usable:
                    self._idle.append(connection)
                return outcome
        except (OSError, ConnectionBrokenError, httptools.HttpParserError) as error:
            # TimeoutError is an OSError.
            return Outcome(0, code="timeout" if isinstance(error, TimeoutError) else type(error).__name__)

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        _, opened = await loop.create_connection(
            Connection, self.target.host, self.target.port, ssl=True if self.target.tls else None
        )
        self.opened += 1
        return opened


async def closed_loop(
    pool: Pool,
    requests: Iterator[bytes],
    *,
    clients: int,
    seconds: float,
    most: int,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[list[Exchange], float]:
    """Let ``clients`` send, each its next request when its last is answered, for ``seconds`` or ``most`` requests.

    Returns what happened, in order of the answers, and the seconds until the last answer.
    """
    # Not the loop's own time, which uvloop keeps in whole milliseconds.
    clock = time.perf_counter
    began = clock()
    tickets = count()
    exchanges: list[Exchange] = []

    async def client() -> None:
        while clock() - began < seconds and next(tickets) < most:
            due = clock() - began
            outcome = await pool.exchange(next(requests), _nothing)
            exchanges.append(Exchange(due, 0.0, clock() - began - due, outcome))
            if outcome.status != OK:
                await sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return exchanges, clock() - began


def poisson_schedule(rate: float, *, seconds: float, most: int, seed: int) -> list[float]:
    """Return the seconds, rising from 0, at which a Poisson process of ``rate`` a second has events.

    The gaps are independent and exponential with mean 1 / ``rate``. Ends at ``seconds`` or ``most`` events.
    """
    chance = random.Random(seed)
    times: list[float] = []
    now = chance.expovariate(rate)
    while now < seconds and len(times) < most:
        times.append(now)
        now += chance.expovariate(rate)
    return times


async def open_loop(pool: Pool, requests: Iterator[bytes], schedule: list[float]) -> tuple[list[Exchange], float]:
    """Send a request at each of the ``schedule``'s seconds, however long the answers take; never before it.

    Returns what happened, in order of the answers, and the seconds until the last answer. What a request waits for the
    generator itself (timers of a millisecond, connections at their bound) is part of its latency.
    """
    # Not the loop's own time, which uvloop keeps in whole milliseconds.
    clock = time.perf_counter
    began = clock()
    exchanges: list[Exchange] = []

    async def send(due: float, request: bytes) -> None:
        late = 0.0

        def taken() -> None:
            nonlocal late
            late = clock() - began - due

        outcome = await pool.exchange(request, taken)
        exchanges.append(Exchange(due, late, clock() - began - due, outcome))

    async with asyncio.TaskGroup() as group:
        for due in schedule:
            while (early := due - (clock() - began)) > 0:  # noqa: ASYNC110 - what is awaited is the time itself
                await asyncio.sleep(math.ceil(1e3 * early) / 1e3)
            group.create_task(send(due, next(requests)))
    return exchanges, clock() - began


def _nothing() -> None:
    return
