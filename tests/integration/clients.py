"""Closed-loop clients that write down what each of them was answered, and by which release."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: when it was sent and answered (monotonic seconds), its status, and who answered it."""

    client: int
    sent: float
    answered: float
    status: int
    version: str
    generation: int


class Clients:
    """``count`` threads that post ``body`` without pause, each over its own connection, until the block ends."""

    def __init__(self, url: str, body: bytes, *, count: int = 8, most_seconds: float = 120.0) -> None:
        """Aim at ``url`` + /v1/detect; stop by themselves after ``most_seconds``."""
        self._address = urlsplit(url)
        self._body = body
        self._count = count
        self._until = time.monotonic() + most_seconds
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.exchanges: list[Exchange] = []

    def __enter__(self) -> Self:
        """Start posting."""
        self._threads = [threading.Thread(target=self._post, args=(n,), daemon=True) for n in range(self._count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop posting and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=40)

    def wait_for(self, generation: int, *, within_s: float = 60.0) -> None:
        """Return once every client has been answered by ``generation`` or a later one."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            seen = {e.client for e in list(self.exchanges) if e.status == 200 and e.generation >= generation}
            if len(seen) == self._count:
                return
            threading.Event().wait(0.05)
        msg = f"only clients {sorted(seen)} were answered by generation {generation} within {within_s} s"
        raise AssertionError(msg)

    def _post(self, client: int) -> None:
        host, port = self._address.hostname or "127.0.0.1", self._address.port
        connection = http.client.HTTPConnection(host, port, timeout=30)
        while not self._stop.is_set() and time.monotonic() < self._until:
            sent = time.monotonic()
            status, version, generation = 0, "", -1
            try:
                connection.request("POST", "/v1/detect", self._body, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                answer = response.read()
                status = response.status
                if status == 200:
                    metadata = json.loads(answer)["metadata"]
                    version, generation = metadata["version"], metadata["generation"]
                    assert response.headers["X-Model-Version"] == version
            except (OSError, http.client.HTTPException):
                with contextlib.suppress(OSError):
                    connection.close()
            self.exchanges.append(Exchange(client, sent, time.monotonic(), status, version, generation))
        connection.close()


def regressions(exchanges: list[Exchange]) -> list[tuple[Exchange, Exchange]]:
    """Return the pairs that break I7: an answer, and one of a lower generation to a request sent after it."""
    good = [e for e in exchanges if e.status == 200]
    answers = sorted(good, key=lambda e: e.answered)
    requests = sorted(good, key=lambda e: e.sent)
    found: list[tuple[Exchange, Exchange]] = []
    newest: Exchange | None = None
    position = 0
    for request in requests:
        while position < len(answers) and answers[position].answered < request.sent:
            if newest is None or answers[position].generation > newest.generation:
                newest = answers[position]
            position += 1
        if newest is not None and request.generation < newest.generation:
            found.append((newest, request))
    return found
