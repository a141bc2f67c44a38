"""Bodies under a limit and a deadline, and clients that leave."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from models.errors import OverloadedError
from serve import fake_time
from serve.connection import (
    LINGER_BYTES,
    LINGER_S,
    MINIMUM_BUDGET,
    STALL_BYTES,
    STALL_S,
    BodyBudget,
    DisconnectGuard,
    UnreadBody,
    read_body,
)
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


async def read(receive: Receive, limit: int = 100, seconds: float = 60.0, budget: int = 1000, **headers: str) -> bytes:
    """Read a body under test with a budget of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with BodyBudget(budget).lend() as loan:
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


def dripping(size: int, every_s: float, times: int) -> Receive:
    """Return a receive that hands out ``size`` bytes every ``every_s`` seconds, ``times`` times, then the end."""
    left = [times]

    async def receive() -> Message:
        await asyncio.sleep(every_s)  # of the loop's own, flying time
        left[0] -= 1
        return {"type": "http.request", "body": bytes(size), "more_body": left[0] > 0}

    return receive


@pytest.mark.parametrize(
    ("size", "every_s", "seconds", "after_s"),
    [
        (1, 1.0, 600.0, STALL_S),
        (STALL_BYTES, STALL_S + 1.0, 600.0, STALL_S),
        (STALL_BYTES // 2 - 1, STALL_S / 2, 600.0, STALL_S),
        (STALL_BYTES, 1.0, 30.0, 30.0),
    ],
)
def test_a_slow_body_is_ended(size: int, every_s: float, seconds: float, after_s: float) -> None:
    """Trickled, silent and almost fast enough: each ends after STALL_S; what keeps up ends at the deadline."""

    async def attempt() -> float:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(BodyTimeoutError):
            await read(dripping(size, every_s, 10**6), limit=10**9, seconds=seconds, budget=10**9)
        return asyncio.get_running_loop().time() - begun

    assert fake_time.run(attempt()) == pytest.approx(after_s, abs=0.5)


def test_a_body_that_keeps_up_may_take_its_time() -> None:
    """13 kbit/s for a minute is slow, and enough."""
    work = read(dripping(STALL_BYTES, STALL_S * 0.9, 7), limit=10**6, seconds=600.0, budget=10**6)
    assert len(fake_time.run(work)) == 7 * STALL_BYTES


POSTED: dict[str, Any] = {"headers": [(b"content-length", b"100000")]}


async def refuse(receive: Receive, status: int = 422, scope: dict[str, Any] = POSTED) -> tuple[list[Message], float]:
    """Answer without reading; return what was sent and how long the end of it took."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    unread = UnreadBody(scope, receive, send)
    begun = asyncio.get_running_loop().time()
    await unread.send({"type": "http.response.start", "status": status, "headers": []})
    await unread.send({"type": "http.response.body", "body": b"no"})
    await unread.finish()
    return sent, asyncio.get_running_loop().time() - begun


@pytest.mark.parametrize(("status", "seconds"), [(422, LINGER_S), (413, LINGER_S), (200, LINGER_S), (408, 0.0)])
def test_a_body_that_trickles_in_after_its_answer_ends_the_connection(status: int, seconds: float) -> None:
    """The client has its answer at once, and some seconds to finish; one that was too slow already has none."""
    sent, took = fake_time.run(refuse(dripping(1, 1.0, 10**6), status))
    assert sent[0]["headers"] == [(b"connection", b"close")]
    assert sent[1:] == [
        {"type": "http.response.body", "body": b"no", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ]
    assert took == pytest.approx(seconds, abs=0.5)


def test_a_client_that_finishes_its_body_or_leaves_is_not_waited_for() -> None:
    """Reading the rest of a refused upload keeps its answer from being lost in a reset."""
    assert fake_time.run(refuse(dripping(10, 0.1, 5)))[1] == pytest.approx(0.5, abs=0.2)
    assert fake_time.run(refuse(feed([b"a"], end=False)))[1] < 0.2


async def test_a_flood_that_was_refused_is_not_read_for_long() -> None:
    """Bytes that come faster than they can be thrown away end the wait, too."""
    read_so_far = 0

    async def flood() -> Message:
        nonlocal read_so_far
        read_so_far += 2**20
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    await refuse(flood)
    assert read_so_far == LINGER_BYTES


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"0")], [(b"host", b"x")]])
async def test_a_request_without_a_body_keeps_its_connection(headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing is waited for where nothing comes."""
    sent, _ = await refuse(feed([], end=False), scope={"headers": headers})
    assert sent[0]["headers"] == []
    assert sent[1:] == [{"type": "http.response.body", "body": b"no"}]


async def test_an_answer_to_a_body_that_was_read_passes_as_it_is() -> None:
    """The usual request costs a comparison."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    unread = UnreadBody(POSTED, feed([b"a", b"b"]), send)
    assert await read(unread.receive) == b"ab"
    messages = [
        {"type": "http.response.start", "status": 400, "headers": []},
        {"type": "http.response.body", "body": b"no"},
    ]
    for message in messages:
        await unread.send(message)
    await unread.finish()
    assert sent == messages


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


async def test_what_a_request_held_is_freed_without_a_collection() -> None:
    """A circle through the watcher would keep it until a full collection, which holds up everybody."""

    class Held:
        pass

    held = Held()
    seen = weakref.ref(held)

    async def receive(held: Held) -> Message:
        await asyncio.Event().wait()
        return {"type": type(held).__name__}

    gc.disable()
    try:
        async with DisconnectGuard(functools.partial(receive, held)):
            await asyncio.sleep(0)
        del held
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen() is None
    finally:
        gc.enable()


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
