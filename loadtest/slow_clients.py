"""Slow clients on a service while healthy ones go on: does anybody else notice, and does the service get rid of them?

    python loadtest/slow_clients.py --serve
    python loadtest/slow_clients.py --url http://127.0.0.1:8000 --seconds 60 --clients 200 --rate 6

A round is half a control, the slow clients, the other half of the control, so that a drift of the machine falls on
both alike. The healthy load is an open loop by a Poisson clock. A slow client that the service has ended comes again at
once, until the slow part is over; then each waits until the service ends it. Where the p99 of one round misses the
goal, up to ``--rounds`` are run, and all of them count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import framing
import uvloop
from load import MOST_CLIENTS, MOST_RATE, TRAY, refuse_remote, target_of
from loops import Exchange, Pool, open_loop, poisson_schedule
from report import percentile
from servers import ServerError, end_when_told, steelyard

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_SECONDS = 600.0
MOST_ROUNDS = 10
GOAL = 1.5
"""Most that the p99 of healthy clients may grow by, times the control's."""
PATIENCE_S = 75.0
"""Time in which the service must end a connection: beyond each of its own limits."""
DRIP_S = 1.0
CONNECTIONS = 64

_START = b"POST /v1/detect HTTP/1.1\r\nHost: slow\r\n"
_SIZED = _START + b"Content-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)
_CHUNKED = _START + b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\nC350\r\n" + bytes(25_000)
KINDS: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "half the headers": (_START + b"X-Half: ", b""),
    "headers, a byte a second": (_START + b"X-Slow: ", b"a"),
    "half a body": (_SIZED, b""),
    "a body, a byte a second": (_SIZED, b"\0"),
    "half a chunk": (_CHUNKED, b""),
    "a chunk, a byte a second": (_CHUNKED, b"\0"),
}
"""What a slow client sends at first, and every second from then on."""


@dataclass(slots=True)
class Slow:
    """What became of the slow clients' connections.

    opened: how many there were. ended: those that the service closed, by kind. left: those it did not, by kind.
    statuses: the answers they got, "" for none. longest_s: longest life of one, by kind.
    """

    opened: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """Seconds of every healthy request in the control and beside the slow clients, and those that failed."""

    control: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    slow: Slow = field(default_factory=Slow)
    rounds: int = 0

    def ratio(self) -> float | None:
        """Return the p99 beside slow clients over the control's; None where either has no answers."""
        control, beside = (percentile(sorted(values), 0.99) for values in (self.control, self.beside))
        return None if control is None or beside is None else beside / control

    def good(self) -> bool:
        """Return whether the goal is met, nothing failed, and the service ended every slow connection."""
        ratio = self.ratio()
        return ratio is not None and ratio <= GOAL and not self.failures and not self.slow.left


async def slow_client(host: str, port: int, kind: str, until: float, slow: Slow) -> None:
    """Be slow, and again, until ``until`` (monotonic seconds); the last time until the service ends it."""
    first, drip = KINDS[kind]
    while time.monotonic() < until:
        begun = time.monotonic()
        slow.opened += 1
        answer = bytearray()
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    await _drip(reader, writer, first, drip, answer)
                finally:
                    writer.transport.abort()
        except TimeoutError:
            slow.left[kind] += 1
            return
        except OSError:  # ended by a reset
            pass
        slow.ended[kind] += 1
        slow.statuses[bytes(answer).partition(b"\r\n")[0].decode("latin-1")] += 1
        slow.longest_s[kind] = max(slow.longest_s.get(kind, 0.0), time.monotonic() - begun)
        await asyncio.sleep(0.05)  # one that is refused at once must not become a flood


async def _drip(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, drip: bytes, answer: bytearray
) -> None:
    """Send ``first``, then ``drip`` every second; return once the other side has closed."""
    writer.write(first)
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRIP_S):
                while data := await reader.read(4096):
                    answer += data
                return
        if drip:
            writer.write(drip)
            await writer.drain()


async def measure(
    url: str, request: bytes, *, clients: int, seconds: float, rate: float, rounds: int, seed: int = 0
) -> Measured:
    """Return what healthy clients saw at ``rate`` requests a second, with and without ``clients`` slow ones.

    seconds: of the slow part, and of both halves of the control together. rounds: most that are run.
    """
    found = Measured()
    target = target_of(url, PATIENCE_S)
    seeds = itertools.count(seed)
    pool = Pool(target, CONNECTIONS)

    async def healthy(into: list[float], seconds: float) -> None:
        schedule = poisson_schedule(rate, seconds=seconds, most=100_000, seed=next(seeds))
        exchanges, _ = await open_loop(pool, itertools.repeat(request), schedule)
        _sort(exchanges, into, found.failures)

    try:
        await healthy([], 3.0)
        while found.rounds < rounds and not (found.rounds and found.good()):
            found.rounds += 1
            await healthy(found.control, seconds / 2)
            until = time.monotonic() + seconds
            async with asyncio.TaskGroup() as group:
                for _, kind in zip(range(clients), itertools.cycle(KINDS), strict=False):
                    group.create_task(slow_client(target.host, target.port, kind, until, found.slow))
                await healthy(found.beside, seconds)
            await healthy(found.control, seconds / 2)
    finally:
        pool.close()
    return found


def _sort(exchanges: Sequence[Exchange], into: list[float], failures: Counter[str]) -> None:
    for exchange in exchanges:
        if exchange.outcome.status == 200:  # noqa: PLR2004 - HTTP's own number
            into.append(exchange.seconds)
        else:
            failures[f"{exchange.outcome.status} {exchange.outcome.code}"] += 1


def show(found: Measured) -> str:
    """Return what was measured as lines for people."""
    lines = []
    for name, values in (("control", sorted(found.control)), ("beside", sorted(found.beside))):
        shares = [percentile(values, share) for share in (0.5, 0.95, 0.99)]
        told = "   ".join(
            f"p{number} {'-' if value is None else f'{1e3 * value:.1f}'}"
            for number, value in zip((50, 95, 99), shares, strict=True)
        )
        lines.append(f"{name:8} {len(values)} answers, ms: {told}")
    ratio, slow = found.ratio(), found.slow
    lines.append(
        f"p99 beside slow clients: {'-' if ratio is None else f'{ratio:.2f}'} x control, {found.rounds} rounds"
    )
    lines.append(f"slow connections: {slow.opened} opened, {slow.ended.total()} ended, {slow.left.total()} left")
    lines += [f"  {kind}: {slow.ended[kind]} ended, longest {slow.longest_s.get(kind, 0.0):.1f} s" for kind in KINDS]
    lines.append("  answered: " + ", ".join(f"{status or 'nothing'} x {n}" for status, n in slow.statuses.items()))
    if found.failures:
        lines.append("failures: " + ", ".join(f"{what} x {n}" for what, n in found.failures.items()))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Measure healthy clients beside slow ones.")
    parser.add_argument("--serve", action="store_true", help="start a service for the measurement, demo detector")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=200, help="slow clients (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the slow part (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=6.0, help="healthy requests a second (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="most rounds (default: %(default)s)")
    parser.add_argument("--remote", action="store_true", help="allow a service on another machine of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for name, least, most in (
        ("clients", 1, 4 * MOST_CLIENTS),
        ("seconds", 1.0, MOST_SECONDS),
        ("rate", 0.01, MOST_RATE),
        ("rounds", 1, MOST_ROUNDS),
    ):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} is outside {least} to {most}")
    reason = refuse_remote(options.url, allowed=options.remote)
    if reason is not None:
        parser.error(reason)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return 1 where the goal is missed, 2 where no service could be started, else 0."""
    options = parse(arguments)
    with contextlib.ExitStack() as stack:
        url = options.url
        if options.serve:
            try:
                url = stack.enter_context(steelyard()).url
            except ServerError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        request = framing.build(TRAY.read_bytes(), framing="raw", host="slow", path="/v1/detect")
        found = uvloop.run(
            measure(
                url,
                request,
                clients=options.clients,
                seconds=options.seconds,
                rate=options.rate,
                rounds=options.rounds,
            )
        )
    print(json.dumps(asdict(found) | {"ratio": found.ratio()}, indent=2) if options.json else show(found))
    return 0 if found.good() else 1


if __name__ == "__main__":
    end_when_told()
    sys.exit(main())
