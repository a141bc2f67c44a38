"""Load on a detection service: closed loop of N clients, or open loop by a Poisson clock.

    python loadtest/load.py models/demo/sample-tray.jpg --clients 8 --seconds 20
    python loadtest/load.py photographs/ --rate 40 --requests 2000
    python loadtest/load.py --serve --seconds 30
    python loadtest/load.py tray.jpg --versus http://127.0.0.1:8001 --rounds 5

README.md beside this file says what each of the two loads tells and what it does not. A run ends by itself: at
``--seconds`` or at ``--requests``, whichever comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import framing
import pictures
import uvloop
from loops import Pool, Target, closed_loop, open_loop, poisson_schedule
from report import Report, show, summarize
from servers import ServerError, end_when_told, steelyard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_CLIENTS = 256
MOST_CONNECTIONS = 4096
MOST_SECONDS = 3600.0
MOST_REQUESTS = 1_000_000
MOST_RATE = 10_000.0
TRAY = Path(__file__).resolve().parent.parent / "models" / "demo" / "sample-tray.jpg"


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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Post pictures to a service and measure the answers.")
    parser.add_argument(
        "images", type=Path, nargs="?", default=TRAY, help="picture, or folder of pictures (default: the sample tray)"
    )
    parser.add_argument("--serve", action="store_true", help="start a service for the measurement, demo detector")
    parser.add_argument("--replicas", type=int, default=1, help="replicas with --serve (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument("--model", help="model to ask (default: the first one)")
    parser.add_argument("--path", help="route to post to, where it is not Steelyard's own")
    parser.add_argument("--framing", choices=sorted(framing.FRAMINGS), default="raw", help="shape of a request")
    parser.add_argument("--clients", type=int, default=8, help="closed loop: clients at once (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="open loop: requests a second, by a Poisson clock")
    parser.add_argument("--connections", type=int, default=512, help="most connections of an open loop")
    parser.add_argument("--seconds", type=float, default=20.0, help="longest duration (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100_000, help="most requests (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=20, help="requests before, not counted (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds one request may take, then it failed")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pictures and of the Poisson clock")
    parser.add_argument("--versus", metavar="URL", help="a second service, measured in turns with the first")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs with --versus (default: %(default)s)")
    parser.add_argument("--remote", action="store_true", help="allow a service on another machine of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    for name, least, most in (
        ("clients", 1, MOST_CLIENTS),
        ("connections", 1, MOST_CONNECTIONS),
        ("rate", 0.01, MOST_RATE),
        ("seconds", 0.1, MOST_SECONDS),
        ("requests", 1, MOST_REQUESTS),
        ("warmup", 0, 10_000),
        ("timeout", 0.1, 600.0),
        ("rounds", 1, 100),
        ("replicas", 1, 64),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name} is outside {least} to {most}")
    for url in filter(None, (options.url, options.versus)):
        reason = refuse_remote(url, allowed=options.remote)
        if reason is not None:
            parser.error(reason)
    if options.versus == options.url:
        parser.error("--versus names the same service as --url")
    try:
        options.images = pictures.find(options.images)
    except ValueError as error:
        parser.error(str(error))
    return options


def build_requests(options: argparse.Namespace, url: str) -> list[bytes]:
    """Return one whole request a picture, aimed at ``url``."""
    path = options.path or ("/v1/detect" if options.model is None else f"/v1/models/{quote(options.model, '')}/detect")
    host = urlsplit(url).netloc.rpartition("@")[2]
    return [
        framing.build(picture.read_bytes(), framing=options.framing, host=host, path=path) for picture in options.images
    ]


def target_of(url: str, timeout_s: float) -> Target:
    """Return where ``url`` points."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    return Target(parts.hostname or "", parts.port or (443 if tls else 80), tls=tls, timeout_s=timeout_s)


async def measure(options: argparse.Namespace, url: str, requests: Iterator[bytes]) -> Report:
    """Warm up, then run one load on the service at ``url``."""
    target = target_of(url, options.timeout)
    pool = Pool(target, options.clients if options.rate is None else options.connections)
    try:
        if options.warmup:
            clients = min(options.clients, options.warmup)
            await closed_loop(pool, requests, clients=clients, seconds=MOST_SECONDS, most=options.warmup)
        cpu = time.process_time()
        if options.rate is None:
            exchanges, seconds = await closed_loop(
                pool, requests, clients=options.clients, seconds=options.seconds, most=options.requests
            )
            clients, schedule = options.clients, None
        else:
            schedule = poisson_schedule(options.rate, seconds=options.seconds, most=options.requests, seed=options.seed)
            exchanges, seconds = await open_loop(pool, requests, schedule)
            clients = 0
        cpu = time.process_time() - cpu
    finally:
        pool.close()
    return summarize(url, exchanges, clients=clients, seconds=seconds, schedule=schedule, cpu_s=cpu)


def measure_all(options: argparse.Namespace, urls: Sequence[str]) -> list[Report]:
    """Measure the service, or both in turns; prints each run as it ends unless JSON is wanted."""
    built = {url: build_requests(options, url) for url in urls}
    reports: list[Report] = []
    for turn in range(options.rounds if options.versus else 1):
        # Every other pair runs in the other order, so that a drift of the machine falls on both alike.
        for url in urls if turn % 2 == 0 else urls[::-1]:
            requests = pictures.cycle(built[url], options.seed)
            reports.append(uvloop.run(measure(options, url, requests)))
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
    """Measure and report; return 1 where any request failed, 2 where no service could be started, else 0.

    A refusal with 429 is a failure only in a closed loop, which never asks for more than its clients can hold.
    """
    options = parse(arguments)
    with contextlib.ExitStack() as stack:
        if options.serve:
            try:
                options.url = stack.enter_context(steelyard("--replicas", str(options.replicas))).url
            except ServerError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        urls = [url for url in (options.url, options.versus) if url is not None]
        reports = measure_all(options, urls)
    ratio = ratio_of(reports, *urls) if options.versus else None
    if options.json:
        print(json.dumps({"runs": [asdict(report) for report in reports], "ratio": ratio}, indent=2))
    elif ratio is not None:
        print(f"{urls[1]} answers {ratio:.3f} times as many a second (median of {options.rounds} pairs)")
    return 1 if any(is_bad(report) for report in reports) else 0


def is_bad(report: Report) -> bool:
    """Return whether the run holds a failure, or no answer at all."""
    return bool(report.failed) or not report.answered or (report.mode == "closed" and bool(report.refused))


if __name__ == "__main__":
    end_when_told()
    sys.exit(main())
