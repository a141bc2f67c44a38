"""Clients by a Poisson clock that write down which release answered each of their requests, and with what."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import httptools
from connection import Connection, ConnectionBrokenError, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loops import Target

MOST_REQUESTS = 200_000
"""The answers of a run are kept in memory."""


class Seen(NamedTuple):
    """One request; moments are seconds of the run.

    client, picture: whose and of what, indices. due: when it was to be sent. sent: when a connection took it. done: its
    answer's last byte. status: 0 for no answer. code: the problem's, or what broke. version, digest: of the headers.
    body: of an answer 200.
    """

    client: int
    picture: int
    due: float
    sent: float
    done: float
    status: int
    code: str
    version: str
    digest: str
    body: bytes


class Witness(Connection):
    """A connection that keeps the whole last answer: ``digest`` of its header and ``answer``, its body."""

    digest = ""
    answer = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the digest too."""
        super().on_header(name, value)
        if name.lower() == b"x-weights-digest":
            self.digest = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Keep everything."""
        super().on_body(body)
        self.answer += body

    def _reset(self) -> None:
        super()._reset()
        self.digest, self.answer = "", b""


class Clients:
    """``count`` clients that share connections. ``seen`` fills while ``run`` runs."""

    def __init__(self, target: Target, requests: Sequence[Sequence[bytes]], *, connections: int, seed: int) -> None:
        """Send nothing yet.

        Args:
            target: the service, and the seconds that a request may take.
            requests: a row of whole requests a client, one a picture.
            connections: most that are open at once.
            seed: of the clock and of who sends what.
        """
        self.seen: list[Seen] = []
        self.began = 0.0
        self.wall_began = 0.0
        self._target, self._requests = target, requests
        self._chance = random.Random(seed)
        self._room = asyncio.Semaphore(connections)
        self._idle: list[Witness] = []

    def now(self) -> float:
        """Return the second of the run."""
        # Not the loop's own time, which uvloop keeps in whole milliseconds.
        return time.perf_counter() - self.began

    def begin(self) -> None:
        """Make this moment second 0."""
        self.began, self.wall_began = time.perf_counter(), time.time()

    async def run(self, rate: float, done: asyncio.Event, *, seconds: float) -> None:
        """Send ``rate`` requests a second, however long answers take, until ``done`` or ``seconds``.

        Returns when the last answer is here.
        """
        due = self.now() + self._chance.expovariate(rate)
        async with asyncio.TaskGroup() as group:
            while not done.is_set() and due < seconds and len(self.seen) < MOST_REQUESTS:
                while (early := due - self.now()) > 0:  # noqa: ASYNC110 - what is awaited is the time itself
                    await asyncio.sleep(math.ceil(1e3 * early) / 1e3)
                client = self._chance.randrange(len(self._requests))
                picture = self._chance.randrange(len(self._requests[client]))
                group.create_task(self._ask(client, picture, due))
                due += self._chance.expovariate(rate)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _ask(self, client: int, picture: int, due: float) -> None:
        sent, outcome, digest, body = due, Outcome(0), "", b""
        try:
            async with asyncio.timeout(self._target.timeout_s), self._room:
                connection = await self._take()
                sent = self.now()
                outcome = await connection.exchange(self._requests[client][picture])
                digest, body = connection.digest, connection.answer
                if connection.usable:
                    self._idle.append(connection)
        except (OSError, ConnectionBrokenError, httptools.HttpParserError) as error:
            outcome = Outcome(0, code="timeout" if isinstance(error, TimeoutError) else type(error).__name__)
        self.seen.append(
            Seen(client, picture, due, sent, self.now(), outcome.status, outcome.code, outcome.version, digest, body)
        )

    async def _take(self) -> Witness:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        loop = asyncio.get_running_loop()
        _, opened = await loop.create_connection(Witness, self._target.host, self._target.port)
        return opened
