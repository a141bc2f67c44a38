"""One request's connection: the body under a byte limit and a deadline, one that nobody reads, a client that leaves."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

from starlette.requests import ClientDisconnect

from models.errors import OverloadedError
from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidBodyError, UnsupportedEncodingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from starlette.types import Message, Receive, Scope, Send

BODIES_AT_ONCE: Final = 16
"""Full-sized bodies that may lie in memory at once; many more smaller ones fit into the same bytes."""
MINIMUM_BUDGET: Final = 256 * 1024 * 1024
STALL_S: Final = 10.0
"""Time in which the next STALL_BYTES of a body, or its end, must have come (seconds)."""
STALL_BYTES: Final = 16 * 1024
"""So much every STALL_S is about 13 kbit/s: the slowest mobile link keeps up, a byte a second does not."""
LINGER_S: Final = 5.0
"""Time in which a client may finish a body that was refused already (seconds)."""
LINGER_BYTES: Final = 32 * 1024 * 1024
"""Most that is read of it, and thrown away."""
_DISCONNECT: Final = "http.disconnect"


class BodyBudget:
    """Bytes of request bodies that one process holds at once, so that many large uploads cannot exhaust its memory."""

    def __init__(self, limit: int) -> None:
        """Allow ``limit`` bytes (> 0) at once over all requests."""
        self._limit = limit
        self.used = 0

    @classmethod
    def for_bodies_of(cls, max_body_bytes: int) -> BodyBudget:
        """Return a budget that fits ``BODIES_AT_ONCE`` bodies of the largest size."""
        return cls(max(BODIES_AT_ONCE * max_body_bytes, MINIMUM_BUDGET))

    def lend(self) -> BodyLoan:
        """Return a loan of 0 bytes that grows while a body arrives; leaving its block gives all back."""
        return BodyLoan(self)

    def take(self, size: int) -> None:
        """Claim ``size`` bytes. Raises OverloadedError where they do not fit."""
        if self.used + size > self._limit:
            msg = "Too many uploads are in flight; send this one again in a moment"
            raise OverloadedError(msg)
        self.used += size

    def give(self, size: int) -> None:
        """Return ``size`` bytes."""
        self.used -= size


class BodyLoan:
    """One request's share of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        """Start with no bytes."""
        self._budget = budget
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.give(self._size)
        self._size = 0

    def grow(self, size: int) -> None:
        """Claim ``size`` more bytes. Raises OverloadedError where they do not fit."""
        self._budget.take(size)
        self._size += size


async def read_body(
    receive: Receive, headers: Mapping[str, str], *, limit: int, seconds: float, loan: BodyLoan
) -> bytes:
    """Return the whole body, at most ``limit`` bytes, read within ``seconds`` and never slower than STALL_S allows.

    A slow body would otherwise keep its bytes of the budget from the others until the request's deadline. A body whose
    declared length is too large is refused before a byte of it is read. Raises BodyTooLargeError,
    UnsupportedEncodingError (nothing is inflated here, so no small body becomes a large one), InvalidBodyError,
    BodyTimeoutError, OverloadedError, and ClientDisconnect where the client left.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        msg = "The body is compressed; send it as it is, images are compressed already"
        raise UnsupportedEncodingError(msg)
    declared = headers.get("content-length")
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            msg = "Content-Length is not a whole number; send the body's size in bytes"
            raise InvalidBodyError(msg)
        # Compared as text first: int() refuses digits by the thousand with an error of its own.
        if len(declared.lstrip("0")) > len(str(limit)) or int(declared) > limit:
            raise _too_large(limit)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    try:
        async with asyncio.timeout_at(min(end, loop.time() + STALL_S)) as timer:
            return await _collect(receive, limit, loan, lambda: timer.reschedule(min(end, loop.time() + STALL_S)))
    except TimeoutError:
        if loop.time() < end:
            msg = f"The body came too slowly; send at least {STALL_BYTES} bytes every {STALL_S:.0f} s"
        else:
            msg = "The body was not complete when the request's time ran out; send it faster, or a smaller one"
        raise BodyTimeoutError(msg) from None


async def _collect(receive: Receive, limit: int, loan: BodyLoan, keeps_up: Callable[[], None]) -> bytes:
    chunks: list[bytes] = []
    size = fresh = 0
    while True:
        message = await receive()
        if message["type"] == _DISCONNECT:
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        if chunk:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            loan.grow(len(chunk))
            chunks.append(chunk)
            fresh += len(chunk)
            if fresh >= STALL_BYTES:
                fresh = 0
                keeps_up()
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body exceeds {limit} bytes; send smaller images, or fewer in one request")


class UnreadBody:
    """Ends the connection of a request that was answered before its body had come.

    An ASGI server would go on reading what nobody wants, at a byte a second for ever. The answer is sent at once; then
    a client that sends its body at a client's usual speed may finish it within LINGER_S, since closing in the middle
    would take the answer from it. One whose body came too slowly has had its time.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stand between the server's ``receive`` and ``send`` and the application."""
        self._scope = scope
        self._receive = receive
        self._send = send
        self._whole = False
        self._ends = False
        self._lingers = False

    async def receive(self) -> Message:
        """Return the next message of the client."""
        message = await self._receive()
        if not message.get("more_body", False):
            self._whole = True
        return message

    async def _drain(self) -> None:
        left = LINGER_BYTES
        while not self._whole and left > 0:
            left -= len((await self.receive()).get("body", b""))

    async def send(self, message: Message) -> None:
        """Send a part of the answer; the end of one to an unread body is kept for ``finish``."""
        if message["type"] == "http.response.start":
            self._ends = not self._whole and has_body(self._scope["headers"])
            if self._ends:
                self._lingers = message["status"] != HTTPStatus.REQUEST_TIMEOUT
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        elif self._ends and not message.get("more_body", False):
            message = {**message, "more_body": True}
        await self._send(message)

    async def finish(self) -> None:
        """End the answer, and the connection with it; nothing to do where the body was read."""
        if not self._ends:
            return
        if self._lingers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._drain()
        await self._send({"type": "http.response.body", "body": b""})


def has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request with these headers has a body (RFC 9112 section 6.3)."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")) for name, value in headers
    )


class DisconnectGuard:
    """Cancels the work in its block when the client goes away, and turns that into ClientDisconnect.

    Enter it once the body is complete: from then on the only message that can arrive is the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        """Watch the connection behind ``receive``."""
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._work = task
        self._cancelling = task.cancelling()
        self._watch = asyncio.create_task(self._wait(), name="disconnect-watch")
        return self

    async def _wait(self) -> None:
        try:
            while (await self._receive())["type"] != _DISCONNECT:
                pass
        except Exception:  # noqa: BLE001, S110 - a connection that cannot be read is a client that is gone
            pass
        self._gone = True
        self._work.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        # The watcher cannot fire after this line: it needs a turn of the loop, and its next one is its own end.
        self._watch.cancel()
        left = self._gone and self._work.uncancel() <= self._cancelling
        # The watcher ends with an error whose frames know this guard: a circle around all of the request, which only
        # a full collection would free.
        del self._watch, self._work
        if left and kind is asyncio.CancelledError:
            raise ClientDisconnect from None
