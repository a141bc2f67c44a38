"""Open-loop clients that name themselves: requests go out when they are due, whether earlier ones were answered or not.

Every other request comes from one of a few regulars, who come again and again; the others from somebody new.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

MOST_AT_ONCE = 256
"""Requests under way past which no more are sent: the service has stopped answering."""
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: who sent it, when, when it was answered (monotonic seconds), its status and who answered it."""

    client: str
    regular: bool
    sent: float
    answered: float
    status: int
    version: str
    generation: int


class OpenLoad:
    """Sends ``rate`` requests a second on average, at random moments, until the block ends.

    pictures: one is drawn for each request; may be replaced while it sends. exchanges: what came of each, as answered.
    """

    def __init__(
        self, url: str, pictures: Sequence[bytes], *, rate: float, regulars: Sequence[str], most_seconds: float = 240.0
    ) -> None:
        """Send nothing before the block begins, and nothing after ``most_seconds``."""
        self.pictures = pictures
        self.exchanges: list[Sent] = []
        self._url, self._rate, self._regulars, self._most_seconds = f"{url}/v1/detect", rate, regulars, most_seconds
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and wait for the last answers."""
        self._stop.set()
        self._thread.join(timeout=TIMEOUT_S + 10.0)
        if error is None and self._error is not None:
            raise self._error

    def wait_for(self, answers: int, *, within_s: float = 60.0) -> None:
        """Return once so many more requests were answered with a detection."""
        wanted, deadline = self._good() + answers, time.monotonic() + within_s
        while self._good() < wanted:
            assert time.monotonic() < deadline, f"{self._good()} answers instead of {wanted} within {within_s} s"
            threading.Event().wait(0.05)

    def _good(self) -> int:
        return sum(each.status == httpx.codes.OK for each in list(self.exchanges))

    def _run(self) -> None:
        try:
            asyncio.run(self._send_all())
        except BaseException as error:  # noqa: BLE001 - raised again where the block ends
            self._error = error

    async def _send_all(self) -> None:
        draw, names = random.Random(0), itertools.count()  # noqa: S311 - a draw, no secret
        limits = httpx.Limits(max_connections=MOST_AT_ONCE, max_keepalive_connections=32)
        begun = due = time.monotonic()
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as http, asyncio.TaskGroup() as group:
            under_way: set[asyncio.Task[None]] = set()
            while not self._stop.is_set() and due < begun + self._most_seconds:
                due += draw.expovariate(self._rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                assert len(under_way) < MOST_AT_ONCE, "the service has stopped answering"
                regular = draw.random() < 0.5
                client = draw.choice(self._regulars) if regular else f"new-{next(names)}"
                task = group.create_task(self._send(http, client, draw.choice(self.pictures), regular=regular))
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    async def _send(self, http: httpx.AsyncClient, client: str, picture: bytes, *, regular: bool) -> None:
        headers = {"Content-Type": "image/jpeg", "X-Client-Id": client}
        sent = time.monotonic()
        status, version, generation = 0, "", -1
        try:
            answer = await http.post(self._url, content=picture, headers=headers)
            status = answer.status_code
            if status == httpx.codes.OK:
                metadata = answer.json()["metadata"]
                version, generation = metadata["version"], metadata["generation"]
        except httpx.HTTPError:
            pass
        self.exchanges.append(Sent(client, regular, sent, time.monotonic(), status, version, generation))


def failed(exchanges: Iterable[Sent]) -> list[Sent]:
    """Return the requests that were not answered with a detection."""
    return [each for each in exchanges if each.status != httpx.codes.OK]


def turned_back(exchanges: Iterable[Sent], candidate: str) -> list[tuple[Sent, Sent]]:
    """Return the pairs of one client: an answer of ``candidate``, and another version's to a request sent after it."""
    by_client: dict[str, list[Sent]] = defaultdict(list)
    for each in exchanges:
        if each.status == httpx.codes.OK:
            by_client[each.client].append(each)
    found = []
    for mine in by_client.values():
        first = min((each for each in mine if each.version == candidate), key=lambda e: e.answered, default=None)
        if first is not None:
            found += [(first, each) for each in mine if each.sent > first.answered and each.version != candidate]
    return found
