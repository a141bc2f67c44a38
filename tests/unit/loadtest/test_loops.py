"""The two loads against a server of the test's own: exact counts, honest failures, bounded waits, the Poisson law."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from typing import TYPE_CHECKING

import pytest
from connection import Outcome
from hypothesis import given
from hypothesis import strategies as st
from loops import Pool, Target, closed_loop, open_loop, poisson_schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Model-Version: 7\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 21\r\n\r\n" + b'{"code":"overloaded"}'
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
HANG = b""
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok"
NONSENSE = b"hello\r\n\r\n"


class OwnServer:
    """Answers each request with the next of its answers; HANG never, CUT and LAST close the connection."""

    def __init__(self, answers: Iterator[bytes], delay_s: float = 0.0) -> None:
        """Keep the answers."""
        self.answers = answers
        self.delay_s = delay_s
        self.arrivals: list[float] = []
        self.connections = 0
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readexactly(len(REQUEST))
                self.arrivals.append(asyncio.get_running_loop().time())
                answer = next(self.answers)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(answer)
                if answer in {CUT, LAST}:
                    break
        writer.close()


@contextlib.asynccontextmanager
async def serving(server: OwnServer) -> AsyncIterator[Callable[[int, float], Pool]]:
    """Run ``server`` and give a maker of pools aimed at it: connections at most, seconds a request may take."""
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    pools: list[Pool] = []

    def make(most: int, timeout_s: float) -> Pool:
        """Make a pool and keep it."""
        pools.append(Pool(Target("127.0.0.1", port, timeout_s=timeout_s), most))
        return pools[-1]

    try:
        yield make
    finally:
        for pool in pools:
            pool.close()
        listener.close()
        for task in filter(None, server.tasks):
            task.cancel()
        await asyncio.gather(*filter(None, server.tasks), return_exceptions=True)


async def no_rest(_: float) -> None:
    """Stand for the pause after a failure."""
    await asyncio.sleep(0)


async def test_closed_loop_sends_exactly_what_was_asked() -> None:
    """The count bounds the run over all clients, each keeps its connection, and the version is read."""
    server = OwnServer(itertools.repeat(GOOD))
    async with serving(server) as make:
        exchanges, seconds = await closed_loop(make(3, 5.0), itertools.repeat(REQUEST), clients=3, seconds=30, most=31)

    assert len(exchanges) == len(server.arrivals) == 31
    assert server.connections == 3
    assert {exchange.outcome for exchange in exchanges} == {Outcome(200, "7")}
    assert all(0 < exchange.seconds <= seconds for exchange in exchanges)


async def test_closed_loop_ends_when_its_time_is_up() -> None:
    """The duration bounds a run however many requests are left."""
    server = OwnServer(itertools.repeat(GOOD), delay_s=0.01)
    async with serving(server) as make:
        exchanges, seconds = await closed_loop(
            make(1, 5.0), itertools.repeat(REQUEST), clients=1, seconds=0.1, most=999
        )

    assert 1 <= len(exchanges) <= 10
    assert 0.1 <= seconds < 5


async def test_every_kind_of_answer_is_told_apart() -> None:
    """Refusals keep code and Retry-After; a cut, a hang and nonsense are failures with names; the loop goes on."""
    server = OwnServer(iter([GOOD, CHUNKED, BUSY, CUT, NONSENSE, HANG, LAST, GOOD]))
    async with serving(server) as make:
        exchanges, _ = await closed_loop(
            make(1, 0.2), itertools.repeat(REQUEST), clients=1, seconds=30, most=8, sleep=no_rest
        )

    outcomes = [exchange.outcome for exchange in exchanges]
    assert [outcome.status for outcome in outcomes] == [200, 200, 429, 0, 0, 0, 200, 200]
    assert outcomes[2] == Outcome(429, "", "overloaded", retry_after=True)
    assert (outcomes[3].code, outcomes[5].code) == ("ConnectionBrokenError", "timeout")
    assert outcomes[4].code.startswith("HttpParser")


async def test_nobody_there_is_a_failure() -> None:
    """A refused connection is counted under its name and ends nothing."""
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    pool = Pool(Target("127.0.0.1", port, timeout_s=1.0), 1)
    exchanges, _ = await closed_loop(pool, itertools.repeat(REQUEST), clients=1, seconds=5, most=2, sleep=no_rest)

    assert [exchange.outcome for exchange in exchanges] == [Outcome(0, code="ConnectionRefusedError")] * 2


async def test_open_loop_never_sends_before_its_time() -> None:
    """The sends follow the schedule and not the answers: a slow server gets them all the same, on more connections."""
    schedule = [0.005 * number for number in range(1, 21)]
    server = OwnServer(itertools.repeat(GOOD), delay_s=0.15)
    async with serving(server) as make:
        began = asyncio.get_running_loop().time()
        exchanges, _ = await open_loop(make(50, 5.0), itertools.repeat(REQUEST), schedule)

    assert sorted(exchange.due for exchange in exchanges) == schedule
    assert all(exchange.late_s >= 0 and exchange.seconds >= 0.15 for exchange in exchanges)
    assert all(arrival - began >= due for arrival, due in zip(sorted(server.arrivals), schedule, strict=True))
    assert server.connections > 10


async def test_waiting_for_a_connection_counts_as_latency() -> None:
    """With one connection allowed the second request waits for the first, and its latency says so."""
    server = OwnServer(itertools.repeat(GOOD), delay_s=0.1)
    async with serving(server) as make:
        exchanges, _ = await open_loop(make(1, 5.0), itertools.repeat(REQUEST), [0.001, 0.002])

    first, second = sorted(exchanges, key=lambda exchange: exchange.due)
    assert server.connections == 1
    assert second.late_s >= 0.09
    assert second.seconds >= 0.19 > first.seconds


async def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    """After a deadline the connection is gone, for the old answer may still come on it."""
    server = OwnServer(iter([HANG, GOOD]))
    async with serving(server) as make:
        exchanges, _ = await closed_loop(
            make(1, 0.1), itertools.repeat(REQUEST), clients=1, seconds=30, most=2, sleep=no_rest
        )

    assert [exchange.outcome.code for exchange in exchanges] == ["timeout", ""]
    assert server.connections == 2


@given(
    rate=st.floats(0.1, 1000.0),
    seconds=st.floats(0.1, 20.0),
    most=st.integers(1, 300),
    seed=st.integers(0, 2**32),
)
def test_a_schedule_rises_within_its_bounds(rate: float, seconds: float, most: int, seed: int) -> None:
    """Times rise from above 0 to below the duration, never more than asked for, and a seed fixes them."""
    times = poisson_schedule(rate, seconds=seconds, most=most, seed=seed)

    assert times == sorted(times)
    assert len(times) <= most
    assert all(0 < each < seconds for each in times)
    assert times == poisson_schedule(rate, seconds=seconds, most=most, seed=seed)


@given(rate=st.floats(0.1, 1000.0), seed=st.integers(0, 2**32))
def test_gaps_are_exponential(rate: float, seed: int) -> None:
    """Kolmogorov-Smirnov: the gaps' distribution lies where 1 - exp(-rate x) does; chance fails this 1 in 10^7."""
    times = poisson_schedule(rate, seconds=math.inf, most=1000, seed=seed)
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise([0.0, *times]))
    distance = max(abs((rank + 1) / len(gaps) - (1 - math.exp(-rate * gap))) for rank, gap in enumerate(gaps))

    assert distance < 2.9 / math.sqrt(len(gaps)) + 1 / len(gaps)


async def test_a_busy_connection_is_a_bug() -> None:
    """Two exchanges at once on one connection would mix their answers."""
    server = OwnServer(itertools.repeat(GOOD), delay_s=0.2)
    async with serving(server) as make:
        pool = make(1, 5.0)
        connection = await pool._take()
        first = asyncio.create_task(connection.exchange(REQUEST))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError):
            await connection.exchange(REQUEST)
        assert (await first).status == 200
        connection.close()
