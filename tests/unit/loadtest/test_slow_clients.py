"""The measurement of slow clients, against servers that end them and servers that do not."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import slow_clients
from slow_clients import KINDS, Measured, Slow, main, slow_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.01)
    writer.write(b"HTTP/1.1 408 Too slow\r\n\r\n")
    writer.close()
    await reader.read(1)


async def _bear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass
    writer.close()


async def _meet(handler: Handler, kind: str, seconds: float) -> Slow:
    """Let one slow client of ``kind`` meet a server for ``seconds``."""
    slow = Slow()
    async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        until = slow_clients.time.monotonic() + seconds
        await slow_client("127.0.0.1", port, kind, until, slow)
    return slow


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_is_ended_is_counted_with_its_answer(kind: str) -> None:
    """The client comes back until its time is over."""
    slow = await _meet(_refuse, kind, 0.1)
    assert 1 <= slow.opened <= 3
    assert slow.ended == {kind: slow.opened}
    assert set(slow.statuses) <= {"HTTP/1.1 408 Too slow", ""}
    assert not slow.left


@pytest.mark.parametrize("kind", ["nothing", "a body, a byte a second"])
async def test_a_connection_that_stays_is_a_failure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends, and the connection counts as one that the service did not end."""
    monkeypatch.setattr(slow_clients, "PATIENCE_S", 0.2)
    monkeypatch.setattr(slow_clients, "DRIP_S", 0.05)
    slow = await _meet(_bear, kind, 0.1)
    assert (slow.opened, slow.left, slow.ended) == (1, {kind: 1}, {})


def test_the_goal_needs_all_three() -> None:
    """The p99, no failure, and no slow connection left."""

    def measured(factor: float, **changes: Counter[str]) -> Measured:
        return Measured(control=[0.1] * 100, beside=[0.1 * factor] * 100, rounds=1, **changes)  # type: ignore[arg-type]

    assert measured(1.4).good()
    assert not measured(1.6).good()
    assert not measured(1.0, failures=Counter({"504 x": 1})).good()
    left = measured(1.0)
    left.slow.left["nothing"] += 1
    assert not left.good()
    assert not Measured().good()
    assert "1.40 x control" in slow_clients.show(measured(1.4))


@pytest.mark.parametrize("arguments", [["--clients", "0"], ["--seconds", "9999"], ["--url", "http://example.org"]])
def test_loads_without_bounds_or_on_others_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every run is bounded, and other machines are left alone."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err
