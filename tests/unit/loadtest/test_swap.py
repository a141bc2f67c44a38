"""The command: its options, the merge of results, its exit code, and clients that note what they were answered."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import swap
from loops import Target
from swap_clients import Clients, Seen
from swap_pieces import MACHINE, a_piece, a_swap
from swap_service import SwapError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = swap.named(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "client-1")
GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Model-Version: 7\r\nX-Weights-Digest: abcd\r\n\r\n{}\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 22\r\n\r\n" + b'{"code":"unavailable"}',
)


@contextlib.asynccontextmanager
async def answering() -> AsyncIterator[int]:
    """Run a server that answers 200 and 503 in turn; gives its port."""
    turn = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readexactly(len(REQUEST))
                writer.write(GOOD[turn % 2])
                turn += 1
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        listener.close_clients() if hasattr(listener, "close_clients") else None


def a_result(*pieces: dict[str, Any], leak: int = 0, what: str = "All.") -> dict[str, Any]:
    """Return what a run writes."""
    return {"what": what, "machine": MACHINE, "leak": leak, "pieces": list(pieces)}


def write(path: Path, result: dict[str, Any]) -> str:
    """Write ``result`` and return its path."""
    path.write_text(json.dumps(result))
    return str(path)


def test_a_piece_sorts_requests_into_windows() -> None:
    """One every tenth of a second, answered in 10 ms and sent 1 ms late: windows by when each was due."""
    run = object.__new__(swap.Run)
    run.options = argparse.Namespace(replicas=2)
    seen = [Seen(0, 0, n / 10, n / 10 + 0.001, n / 10 + 0.01, 200, "", "1", "a", b"") for n in range(100)]
    seen[20] = seen[20]._replace(status=429)
    run._clients = SimpleNamespace(seen=seen)
    swapped = {"version": "2", "asked": 1.05, "first_flip": 1.9}
    run._swaps = [swapped | {"window": (1.25, 3.0), "holds_ms": [5.0, 6.0, 7.0]}]
    seen[19:] = [each._replace(version="2") for each in seen[19:]]
    fleet = SimpleNamespace(timeline=SimpleNamespace(flips=lambda _: {"replica-1": 1.9}, generation=3))
    piece = run._piece(fleet, {"sent": 100})
    (one,) = piece["swaps"]
    assert [len(one[name]) for name in ("before", "during", "control")] == [2, 16, 18]
    assert one["during"] == pytest.approx([10.0] * 16)
    assert (one["gap_ms"], one["control_gap_ms"]) == pytest.approx((200.0, 100.0))
    assert one["first_ms"] == pytest.approx(860.0)
    assert (piece["aborted_holds"], piece["replicas_seen"]) == (1, 1)
    assert piece["late_p99_ms"] == pytest.approx(1.0)


def test_every_request_names_its_client() -> None:
    """The header stands behind the request line, and the rest is untouched."""
    assert REQUEST == b"POST / HTTP/1.1\r\nX-Client-Id: client-1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


async def test_clients_note_who_answered_them() -> None:
    """Status, version and digest of the headers, the body, and moments in order, until they are told to stop."""
    async with answering() as port:
        clients = Clients(Target("127.0.0.1", port, timeout_s=5.0), [[REQUEST]], connections=8, seed=0)
        done = asyncio.Event()
        clients.begin()
        running = asyncio.create_task(clients.run(500.0, done, seconds=30.0))
        while len(clients.seen) < 20:  # noqa: ASYNC110 - the clients tell nobody
            await asyncio.sleep(0.01)
        done.set()
        await asyncio.wait_for(running, 10)
        clients.close()
    good = [seen for seen in clients.seen if seen.status == 200]
    assert {(seen.version, seen.digest, seen.body) for seen in good} == {("7", "abcd", b"{}\r\n")}
    assert {seen.code for seen in clients.seen if seen.status != 200} == {"unavailable"}
    assert all(seen.due <= seen.sent + 1e-6 and seen.sent < seen.done for seen in clients.seen)


async def test_clients_of_nobody_fail_and_say_so() -> None:
    """A refused connection is a failed request, no error of the run."""
    async with answering() as port:
        pass
    clients = Clients(Target("127.0.0.1", port, timeout_s=1.0), [[REQUEST]], connections=2, seed=0)
    clients.begin()
    await asyncio.wait_for(clients.run(200.0, asyncio.Event(), seconds=0.1), 10)
    assert clients.seen
    assert {(seen.status, seen.code) for seen in clients.seen} == {(0, "ConnectionRefusedError")}


@pytest.mark.parametrize("arguments", [["--replicas", "0"], ["--swaps", "0"], ["--rate", "0"], ["--leak", "99"]])
def test_options_out_of_bounds_are_refused(arguments: list[str]) -> None:
    """One line and exit code 2, before anything starts."""
    with pytest.raises(SystemExit, match="2"):
        swap.parse(arguments)


def test_a_real_backend_gets_less_to_do() -> None:
    """The defaults fit the backend; what is given wins."""
    assert (swap.parse([]).rate, swap.parse([]).swaps) == (40.0, 200)
    real = swap.parse(["--backend", "auto", "--swaps", "3"])
    assert (real.rate, real.swaps) == (6.0, 3)


def test_rollbacks_and_hints_take_their_turns() -> None:
    """By default one of ten each, never the same one; 0 means none, and a rollback wins where both are due."""
    actions = [swap.action_of(number, 10, 10) for number in range(1, 21)]
    assert [number for number, action in enumerate(actions, start=1) if action == "hint"] == [5, 15]
    assert [number for number, action in enumerate(actions, start=1) if action == "rollback"] == [10, 20]
    assert {swap.action_of(number, 0, 0) for number in range(1, 9)} == {"promote"}
    assert [swap.action_of(number, 2, 1) for number in (1, 2)] == ["hint", "rollback"]


def test_results_are_merged_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces are pooled; one failed request in any of them is exit code 1."""
    one, two = write(tmp_path / "1.json", a_result(a_piece())), write(tmp_path / "2.json", a_result(a_piece()))
    assert swap.main(["--merge", f"{one},{two}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["swaps"] == 120
    bad = write(tmp_path / "3.json", a_result(a_piece(answered=2499)))
    assert swap.main(["--merge", f"{one},{bad}"]) == 1
    assert "**broken**" in capsys.readouterr().out


def test_results_of_different_measurements_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two and four replicas are no one sample."""
    one = write(tmp_path / "1.json", a_result(a_piece()))
    other = write(tmp_path / "2.json", a_result(a_piece(), what="Else."))
    with pytest.raises(SwapError, match="different"):
        swap.merge([Path(one), Path(other)])
    assert swap.main(["--merge", f"{one},{other}"]) == 2
    assert "different" in capsys.readouterr().err


def test_a_control_succeeds_where_the_leak_is_noticed(tmp_path: Path) -> None:
    """With a planted leak the memory's promise has to break; one that goes unnoticed is exit code 1."""
    leaking = [a_swap(number, rss={"replica-1": 4e8 + number * 4e6}) for number in range(60)]
    assert swap.main(["--merge", write(tmp_path / "1.json", a_result(a_piece(leaking), leak=4))]) == 0
    assert swap.main(["--merge", write(tmp_path / "2.json", a_result(a_piece(), leak=4))]) == 1
