"""Closed-loop load: N clients post one image without pause; prints rate, latency and which versions answered.

    python loadtest/closed_loop.py models/demo/sample-tray.jpg --clients 8 --seconds 20
    python loadtest/closed_loop.py --serve --seconds 30
    python loadtest/closed_loop.py tray.jpg --versus http://127.0.0.1:8001 --rounds 5

Each client sends its next request when the last one is answered, so the rate is what the service can do and not what
it was asked for; README.md beside this file says what such numbers tell and what they do not. A run ends by itself: at
``--seconds`` or at ``--requests``, whichever comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ipaddress
import json
import math
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from own_service import ServiceError, own_service

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OK = 200
MOST_CLIENTS = 256
MOST_SECONDS = 3600.0
MOST_REQUESTS = 1_000_000
_ANSWER_TIMEOUT_S = 60.0
TRAY = Path(__file__).resolve().parent.parent / "models" / "demo" / "sample-tray.jpg"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: seconds from its first byte to its last answer byte, status (0: no answer), version, error code."""

    seconds: float
    status: int
    version: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one run measured. rate: answers 200 a second. Latencies in milliseconds, of answers 200 only."""

    url: str
    clients: int
    seconds: float
    answered: int
    failed: int
    rate: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    most_ms: float | None
    versions: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile of a sorted sequence: a value that was measured, never one in between.

    Args:
        ordered: values in rising order.
        share: 0 to 1.

    Returns:
        None for no values at all.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(url: str, clients: int, seconds: float, exchanges: Sequence[Exchange]) -> Report:
    """Return the report of a run of ``clients`` that took ``seconds``."""
    good = sorted(1e3 * exchange.seconds for exchange in exchanges if exchange.status == OK)
    bad = [exchange for exchange in exchanges if exchange.status != OK]
    return Report(
        url=url,
        clients=clients,
        seconds=seconds,
        answered=len(good),
        failed=len(bad),
        rate=len(good) / seconds if seconds > 0 else 0.0,
        p50_ms=percentile(good, 0.50),
        p95_ms=percentile(good, 0.95),
        p99_ms=percentile(good, 0.99),
        most_ms=good[-1] if good else None,
        versions=dict(sorted(Counter(exchange.version for exchange in exchanges if exchange.status == OK).items())),
        errors=dict(sorted(Counter(f"{exchange.status} {exchange.error}".strip() for exchange in bad).items())),
    )


class Poster:
    """One client: one keep-alive connection that posts the same body again and again."""

    def __init__(self, url: str, body: bytes, *, model: str | None = None) -> None:
        """Aim at the detect route of ``model`` (None: the first one) of the service at ``url``."""
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=_ANSWER_TIMEOUT_S)
        self._path = "/v1/detect" if model is None else f"/v1/models/{quote(model, safe='')}/detect"
        self._body = body
        # The service sniffs the format; the type only has to be one that it takes as raw bytes.
        self._headers = {"Content-Type": "application/octet-stream"}

    def post(self) -> Exchange:
        """Send one request and wait for its answer; a broken connection counts as a failure with status 0."""
        began = time.perf_counter()
        try:
            self._connection.request("POST", self._path, self._body, self._headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Exchange(time.perf_counter() - began, 0, "", type(error).__name__)
        took = time.perf_counter() - began
        if response.status == OK:
            return Exchange(took, OK, response.getheader("X-Model-Version", "?"))
        return Exchange(took, response.status, "", _problem_code(body))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _problem_code(body: bytes) -> str:
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return ""


def run(
    url: str,
    *,
    clients: int,
    seconds: float,
    requests: int,
    connect: Callable[[], Poster],
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Let ``clients`` threads post until ``seconds`` have passed or ``requests`` were sent.

    Args:
        url: named in the report.
        clients: threads, each with a connection of its own.
        seconds: longest duration; requests in flight then are still waited for and counted.
        requests: most requests over all clients.
        connect: makes one client's connection.
        clock: monotonic seconds.

    Returns:
        The report. A client that fails in every request goes on, slower: it must not turn into a busy loop.
    """
    tickets = count()
    exchanges: list[Exchange] = []
    began = clock()

    def post() -> None:
        poster = connect()
        try:
            # next() on itertools.count and list.append are atomic, so the threads need no lock.
            while clock() - began < seconds and next(tickets) < requests:
                exchange = poster.post()
                exchanges.append(exchange)
                if exchange.status == 0:
                    time.sleep(0.05)
        finally:
            poster.close()

    with ThreadPoolExecutor(clients, thread_name_prefix="client") as pool:
        for running in [pool.submit(post) for _ in range(clients)]:
            running.result()
    return summarize(url, clients, clock() - began, exchanges)


def refuse_remote(url: str, *, allowed: bool) -> str | None:
    """Return why ``url`` may not be put under load, or None. Another machine needs the caller's word for it."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return f"{url!r} is not the address of a service; give one such as http://127.0.0.1:8000"
    try:
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        local = False
    if local or allowed:
        return None
    return f"{parts.hostname} is not this machine; load only services of your own, and say --remote for those"


def show(report: Report) -> str:
    """Return the report as lines for people."""
    lines = [
        f"{report.url}: {report.clients} clients, {report.seconds:.1f} s",
        f"  {report.rate:.1f} answers/s   {report.answered} answered   {report.failed} failed",
    ]
    if report.p50_ms is not None:
        lines.append(
            f"  latency ms: p50 {report.p50_ms:.1f}   p95 {report.p95_ms:.1f}   p99 {report.p99_ms:.1f}   "
            f"most {report.most_ms:.1f}"
        )
        lines.append("  versions: " + ", ".join(f"{name} x {number}" for name, number in report.versions.items()))
    if report.errors:
        lines.append("  failures: " + ", ".join(f"{name} x {number}" for name, number in report.errors.items()))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Post one image without pause and measure the answers.")
    parser.add_argument(
        "image", type=Path, nargs="?", default=TRAY, help="JPEG, PNG or WebP file to post (default: the sample tray)"
    )
    parser.add_argument("--serve", action="store_true", help="start a service for the measurement, demo detector")
    parser.add_argument("--replicas", type=int, default=1, help="replicas with --serve (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument("--model", help="model to ask (default: the first one)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="longest duration (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="most requests (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=20, help="requests before, not counted (default: %(default)s)")
    parser.add_argument("--versus", metavar="URL", help="a second service, measured in turns with the first")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs with --versus (default: %(default)s)")
    parser.add_argument("--remote", action="store_true", help="allow a service on another machine of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for name, least, most in (
        ("clients", 1, MOST_CLIENTS),
        ("seconds", 0.1, MOST_SECONDS),
        ("requests", 1, MOST_REQUESTS),
        ("warmup", 0, 10_000),
        ("rounds", 1, 100),
        ("replicas", 1, 64),
    ):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} is outside {least} to {most}")
    for url in filter(None, (options.url, options.versus)):
        reason = refuse_remote(url, allowed=options.remote)
        if reason is not None:
            parser.error(reason)
    if options.versus == options.url:
        parser.error("--versus names the same service as --url")
    if not options.image.is_file():
        parser.error(f"{options.image} does not exist")
    return options


def measure_all(options: argparse.Namespace, urls: Sequence[str]) -> list[Report]:
    """Warm up and measure the service, or both in turns; prints each run as it ends unless JSON is wanted."""
    body = options.image.read_bytes()

    def measure(url: str, requests: int) -> Report:
        def connect() -> Poster:
            return Poster(url, body, model=options.model)

        return run(url, clients=options.clients, seconds=options.seconds, requests=requests, connect=connect)

    for url in urls:
        if options.warmup:
            measure(url, options.warmup)
    reports: list[Report] = []
    for turn in range(options.rounds if options.versus else 1):
        # Every other pair runs in the other order, so that a drift of the machine falls on both alike.
        for url in urls if turn % 2 == 0 else urls[::-1]:
            reports.append(measure(url, options.requests))
            if not options.json:
                print(show(reports[-1]), flush=True)
    return reports


def ratio_of(reports: Sequence[Report], first: str, second: str) -> float | None:
    """Return how many times as many answers a second ``second`` gave: the median over the pairs, in their order."""
    pairs = zip(
        [report.rate for report in reports if report.url == first],
        [report.rate for report in reports if report.url == second],
        strict=True,
    )
    ratios = [b / a for a, b in pairs if a > 0]
    return statistics.median(ratios) if ratios else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return 1 where any request failed, 2 where no service could be started, else 0."""
    options = parse(arguments)
    with contextlib.ExitStack() as stack:
        if options.serve:
            try:
                options.url = stack.enter_context(own_service("--replicas", str(options.replicas)))
            except ServiceError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        urls = [url for url in (options.url, options.versus) if url is not None]
        reports = measure_all(options, urls)
    ratio = ratio_of(reports, *urls) if options.versus else None
    if options.json:
        print(json.dumps({"runs": [asdict(report) for report in reports], "ratio": ratio}, indent=2))
    elif ratio is not None:
        print(f"{urls[1]} answers {ratio:.3f} times as many a second (median of {options.rounds} pairs)")
    return 1 if any(report.failed or not report.answered for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
