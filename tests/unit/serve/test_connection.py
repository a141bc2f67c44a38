"""Bodies under a limit and a deadline, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from models.errors import OverloadedError
from serve.connection import MINIMUM_BUDGET, BodyBudget, DisconnectGuard, read_body
from serve.errors import BodyTimeoutError, BodyTooLargeError, InvalidBodyError, UnsupportedEncodingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Message, Receive


def feed(chunks: Sequence[bytes], *, end: bool = True) -> Receive:
    """Return a receive that hands out ``chunks``, then the client's disconnect, or nothing ever."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if end else {"type": "http.disconnect"})

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return receive


async def read(receive: Receive, limit: int = 100, seconds: float = 60.0, **headers: str) -> bytes:
    """Read a body under test with a budget of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with BodyBudget(1000).lend() as loan:
        return await read_body(receive, named, limit=limit, seconds=seconds, loan=loan)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_a_body_is_read_whole_or_refused_by_size(chunks: list[bytes]) -> None:
    """However it is cut into chunks, the body comes out whole, or is refused when longer than the limit."""
    whole = b"".join(chunks)
    budget = BodyBudget(1000)

    async def attempt() -> bytes:
        with budget.lend() as loan:
            return await read_body(feed(chunks), {}, limit=100, seconds=60.0, loan=loan)

    if len(whole) <= 100:
        assert asyncio.run(attempt()) == whole
    else:
        with pytest.raises(BodyTooLargeError):
            asyncio.run(attempt())
    assert budget.used == 0


async def test_a_declared_length_beyond_the_limit_is_refused_unread() -> None:
    """No byte is read of a body that says it is too large."""

    async def never() -> Message:
        pytest.fail("the body was read")

    for length in ("101", "9" * 5000, "0101"):
        with pytest.raises(BodyTooLargeError):
            await read(never, content_length=length)


@pytest.mark.parametrize("length", ["-1", "ten", "1.5", "٣", ""])
async def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    """A server that lets it through must not make it a crash here."""
    with pytest.raises(InvalidBodyError):
        await read(feed([b"a"]), content_length=length)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, identity", "x"])
async def test_compressed_bodies_are_refused(encoding: str) -> None:
    """Nothing is inflated, so a small body never becomes a large one."""
    with pytest.raises(UnsupportedEncodingError):
        await read(feed([b"a"]), content_encoding=encoding)


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_identity_is_no_compression(encoding: str) -> None:
    """The encoding that changes nothing is accepted."""
    assert await read(feed([b"a"]), content_encoding=encoding) == b"a"


async def test_a_body_that_never_ends_hits_the_deadline() -> None:
    """A client that stops sending does not hold a request for ever."""
    stalled = asyncio.Event()

    async def receive() -> Message:
        await stalled.wait()
        return {}

    with pytest.raises(BodyTimeoutError):
        await read(receive, seconds=0.0)


async def test_leaving_while_sending_is_a_disconnect() -> None:
    """A half-sent body is never taken for a whole one."""
    with pytest.raises(ClientDisconnect):
        await read(feed([b"abc"], end=False))


async def test_the_budget_refuses_what_does_not_fit_and_takes_back_what_ends() -> None:
    """Many uploads at once are refused with 429 before they exhaust the memory."""
    budget = BodyBudget(10)
    with budget.lend() as first:
        first.grow(8)
        with budget.lend() as second, pytest.raises(OverloadedError):
            second.grow(3)
        assert budget.used == 8
    assert budget.used == 0


def test_a_budget_fits_many_of_the_largest_bodies() -> None:
    """Small body limits do not make the budget small."""
    assert BodyBudget.for_bodies_of(1024)._limit == MINIMUM_BUDGET
    assert BodyBudget.for_bodies_of(100 * 2**20)._limit == 1600 * 2**20


async def test_a_client_that_leaves_ends_the_work() -> None:
    """The work is cancelled at its await, and the caller sees a disconnect, not a cancellation."""
    gone = asyncio.Event()
    seen: list[str] = []

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            gone.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(ClientDisconnect):
        async with DisconnectGuard(receive):
            await work()
    task = asyncio.current_task()
    assert task is not None
    assert (seen, task.cancelling()) == (["cancelled"], 0)


async def test_a_connection_that_breaks_is_a_client_that_left() -> None:
    """An error of the transport does not leave the work running for nobody."""

    async def receive() -> Message:
        raise OSError

    with pytest.raises(ClientDisconnect):
        async with DisconnectGuard(receive):
            await asyncio.Event().wait()


async def test_work_that_ends_leaves_no_watcher() -> None:
    """After a good answer only the test's own task is left."""
    async with DisconnectGuard(feed([])):
        pass
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancellation_from_outside_stays_one() -> None:
    """A server that cancels the request is not told that the client left."""
    entered = asyncio.Event()

    async def request() -> None:
        async with DisconnectGuard(feed([])):
            entered.set()
            await asyncio.Event().wait()

    task: asyncio.Task[Any] = asyncio.create_task(request())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
