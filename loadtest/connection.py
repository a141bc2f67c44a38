"""One keep-alive connection of the load generator: sends prebuilt bytes, reads the answer, at little CPU."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, NamedTuple

import httptools

OK = 200
TOO_MANY_REQUESTS = 429
SEND_BUFFER_BYTES = 1024 * 1024
"""Room for a whole request in the kernel, which spares the generator a wake-up or two a request."""
MOST_ERROR_BYTES = 64 * 1024
"""Of a refusal's body so much is kept to read its code from."""


class Outcome(NamedTuple):
    """What came back. status: 0 for no answer. code: the problem's, or what broke. retry_after: header there."""

    status: int
    version: str = ""
    code: str = ""
    retry_after: bool = False


class ConnectionBrokenError(Exception):
    """The other side closed the connection in the middle of an exchange."""


class Connection(asyncio.Protocol):
    """A client's side of one connection; one exchange at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        """Wait for the transport."""
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Outcome] | None = None
        self._reset()

    @property
    def usable(self) -> bool:
        """Return whether another exchange may begin."""
        return self._transport is not None and self._waiter is None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Outcome:
        """Send ``request`` and return the answer; cancelling closes the connection, for its answer may still come.

        Raises ConnectionBrokenError or httptools.HttpParserError; the connection is closed then.
        """
        if not self.usable or self._transport is None:
            msg = "a connection that is busy or closed was used. This is a bug."
            raise RuntimeError(msg)
        self._waiter = asyncio.get_running_loop().create_future()
        self._reset()
        try:
            self._transport.write(request)
            return await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange under way, if there is one."""
        self._transport = None
        self._fail(exc or ConnectionBrokenError())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the two headers that matter."""
        name = name.lower()
        if name == b"x-model-version":
            self._version = value.decode("latin-1")
        elif name == b"retry-after":
            self._retry_after = True

    def on_body(self, body: bytes) -> None:
        """Keep the beginning of a refusal."""
        if self._parser.get_status_code() != OK and len(self._body) < MOST_ERROR_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        """Hand the answer to whoever waits."""
        status = self._parser.get_status_code()
        code = "" if status == OK else _problem_code(self._body)
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Outcome(status, self._version, code, self._retry_after))

    def _reset(self) -> None:
        self._version = ""
        self._retry_after = False
        self._body = b""

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


def _problem_code(body: bytes) -> str:
    """Return the ``code`` of an RFC 9457 problem, or ""."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return ""
