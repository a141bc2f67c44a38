"""What clients suffer while weights change: swaps under open-loop load, beside windows of the same run without any.

    python loadtest/swap.py --backend fake --replicas 2 --swaps 60
    python loadtest/swap.py --backend auto --rate 8 --swaps 20 --out real
    python loadtest/swap.py --merge results/a-swap.json,results/b-swap.json --out both
    python loadtest/swap.py --leak 4 --swaps 40

A window of a swap goes from the first replica's load to a second after the last replica's flip; a control window of the
same length follows, then the next swap. Moments of the service come from its replicas' logs, on the machine's clock.
Exit code 1 when a promise is broken; with ``--leak`` when the planted leak goes unnoticed; 2 when nothing was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import framing
import httpx
import machine
import pictures
import releases
import servers
import uvloop
from load import MOST_CONNECTIONS, TRAY, target_of
from report import percentile
from swap_answers import verdicts
from swap_clients import Clients
from swap_figures import Window, longest_gap, promises, summarize, within
from swap_service import LEAK_POINT, Fleet, SwapError, digest_of, make_releases, next_version, told_apart
from swap_table import markdown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS = Path(__file__).resolve().parent / "results"
CLIENTS = 16
AFTER_S = 1.0
"""What a window holds beyond the last flip: the retired version is freed then."""
MOST_SECONDS = 3600.0
TIMEOUT_S = 30.0
PAUSE_S = 0.1
ABOUT_REPLICAS = 64


class Run:
    """One service under load while its weights change."""

    def __init__(self, options: argparse.Namespace, server: servers.Server, home: Path) -> None:
        """Measure nothing yet. The service has the four versions of ``make_releases`` registered."""
        self.options = options
        self.exact = options.backend == "fake"
        self._server, self._home = server, home
        self._pictures = [path.read_bytes() for path in pictures.find(options.images)]
        host = server.url.removeprefix("http://")
        built = [framing.build(data, framing="raw", host=host, path=server.path) for data in self._pictures]
        rows = [[named(request, f"client-{number}") for request in built] for number in range(CLIENTS)]
        self._clients = Clients(target_of(server.url, TIMEOUT_S), rows, connections=MOST_CONNECTIONS, seed=options.seed)
        self._swaps: list[dict[str, Any]] = []

    async def measure(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """Return one piece: everything that was seen. digests: of the versions as registered. Raises SwapError."""
        versions = list(digests)
        async with httpx.AsyncClient(base_url=self._server.url, timeout=TIMEOUT_S) as client:
            fleet = Fleet(self._server, self._home, self.options.replicas, client)
            known = {version: await fleet.learn(version, digest, self._pictures) for version, digest in digests.items()}
            pairs = [(one, two) for one, two in zip(versions, [*versions[1:], versions[0]], strict=True)]
            if not all(told_apart(known[one], known[two], exact=self.exact) for one, two in pairs):
                msg = "the versions answer a picture alike, so nobody could tell a wrong one; name others with --images"
                raise SwapError(msg)

            def differ(one: str, two: str) -> bool:
                return told_apart(known[one], known[two], exact=self.exact)

            self._clients.begin()
            done = asyncio.Event()
            load = asyncio.create_task(self._clients.run(self.options.rate, done, seconds=MOST_SECONDS))
            try:
                await asyncio.sleep(self.options.warmup)
                serving, previous = versions[-1], versions[-2]
                for number in range(1, self.options.swaps + 1):
                    if load.done():
                        msg = "the load ended before the swaps did: ask for fewer swaps or a lower rate"
                        raise SwapError(msg)
                    every = self.options.rollback_every
                    back = bool(every) and number % every == 0
                    wanted = previous if back else next_version(versions, serving, previous, differ)
                    await self._swap(fleet, wanted, back=back)
                    serving, previous = wanted, serving
            finally:
                done.set()
                await load
                self._clients.close()
            return self._piece(fleet, verdicts(self._clients.seen, known, exact=self.exact))

    async def _swap(self, fleet: Fleet, version: str, *, back: bool) -> None:
        clients = self._clients
        if self.options.leak:
            await fleet.arm(LEAK_POINT, f"leak:{self.options.leak}")
        asked = clients.now()
        generation = await (fleet.roll_back() if back else fleet.promote(version))
        flips = [at - clients.wall_began for at in fleet.timeline.flips(generation).values()]
        end = max(flips) + AFTER_S
        await asyncio.sleep(end - clients.now())
        fleet.timeline.read()
        events = [event for event in fleet.timeline.events if event.at - clients.wall_began >= asked]
        work = [event.at - clients.wall_began - event.ms / 1e3 for event in events if event.kind != "flipped"]
        begin = min(work, default=asked)
        swap = {
            "action": "rollback" if back else "promote",
            "version": version,
            "generation": generation,
            "asked": asked,
            "window": (begin, end),
            "took_ms": 1e3 * (max(flips) - asked),
            "skew_ms": 1e3 * (max(flips) - min(flips)),
            "holds_ms": [event.ms for event in events if event.kind == "held"],
        }
        await asyncio.sleep(2 * end - begin - clients.now())
        sizes = await asyncio.to_thread(fleet.memory)
        swap |= {"rss": {name: rss for name, (rss, _) in sizes.items()}}
        swap |= {"pss": {name: pss for name, (_, pss) in sizes.items()}}
        self._swaps.append(swap)
        # What the look at the memory costs belongs to no window.
        await asyncio.sleep(PAUSE_S)

    def _piece(self, fleet: Fleet, found: dict[str, Any]) -> dict[str, Any]:
        seen = sorted(self._clients.seen, key=lambda each: each.due)
        good = sorted((each.due, 1e3 * (each.done - each.due)) for each in seen if each.status == httpx.codes.OK)
        done = sorted(each.done for each in seen if each.status == httpx.codes.OK)
        behind = sorted((each.due, 1e3 * (each.sent - each.due)) for each in seen)
        late: list[float] = []
        for swap in self._swaps:
            begin, end = swap["window"]
            control: Window = (end, 2 * end - begin)
            swap["before"] = within(good, (swap["asked"], begin))
            swap["during"], swap["control"] = within(good, (begin, end)), within(good, control)
            late += within(behind, (begin, control[1]))
            swap["gap_ms"] = _ms(longest_gap(done, (begin, end)))
            swap["control_gap_ms"] = _ms(longest_gap(done, control))
        flipped = self.options.replicas * len(self._swaps)
        return found | {
            "swaps": self._swaps,
            "aborted_holds": sum(len(swap["holds_ms"]) for swap in self._swaps) - flipped,
            "seconds": seen[-1].due if seen else 0.0,
            "late_p99_ms": percentile(sorted(late), 0.99) or 0.0,
            "replicas_seen": len(fleet.timeline.flips(fleet.timeline.generation)),
        }


def named(request: bytes, client: str) -> bytes:
    """Return the request with the client's name in X-Client-Id."""
    line, rest = request.split(b"\r\n", 1)
    return b"%s\r\nX-Client-Id: %s\r\n%s" % (line, client.encode("ascii"), rest)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start a service, measure it and return the result. Raises SwapError or ServerError."""
    with tempfile.TemporaryDirectory(prefix="steelyard-swap-") as folder:
        home = Path(folder) / "home"
        digests = {
            releases.register(release, home, promote=number == 0): digest_of(release)
            for number, release in enumerate(make_releases(Path(folder), options.cache))
        }
        arguments = ["--model", releases.MODEL, "--replicas", str(options.replicas), "--backend", options.backend]
        environment = {"STEELYARD_ALLOW_FAULT_INJECTION": "true"} if options.leak else {}
        with servers.steelyard(*arguments, home=home, environment=environment) as server:
            piece = uvloop.run(Run(options, server, home).measure(digests))
    what = (
        f"{options.replicas} replicas, backend {options.backend}, {options.rate:g} requests/s by a Poisson clock from "
        f"{CLIENTS} clients, {len(pictures.find(options.images))} picture(s), every swap loads a version anew, "
        f"rollbacks excepted."
    )
    return {"what": what, "machine": machine.describe(), "leak": options.leak, "pieces": [piece]}


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """Return one result of several of the same measurement. Raises SwapError where they are of different ones."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if len({(result["what"], result["leak"]) for result in results}) != 1:
        msg = "the results are of different measurements; merge those of equal replicas, backend, rate and pictures"
        raise SwapError(msg)
    return results[-1] | {
        "pieces": [piece for result in results for piece in result["pieces"]],
        "notes": [f"pooled from {len(results)} results, each of a service of its own"],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(
        description="Swap weights under load and hold what clients see against the promises."
    )
    parser.add_argument("--backend", default="fake", help="auto, openvino, onnxruntime, torch or fake (default)")
    parser.add_argument("--replicas", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rate", type=float, help="requests a second; default: 40, or 6 for a real backend")
    parser.add_argument("--swaps", type=int, help="default: 200, or 20 for a real backend")
    parser.add_argument("--rollback-every", type=int, default=10, help="every so many swaps is a rollback, 0 for none")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds of load before the first swap")
    parser.add_argument("--images", type=Path, default=TRAY, help="picture or folder (default: the sample tray)")
    parser.add_argument("--leak", type=int, default=0, metavar="MIB", help="plant a leak of so much a swap: a control")
    parser.add_argument("--cache", type=Path, default=releases.CACHE, help="folder of converted releases")
    parser.add_argument("--seed", type=int, default=0, help="of the Poisson clock")
    parser.add_argument("--merge", type=paths, metavar="FILES", help="pool results written before instead of measuring")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json and .md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(arguments)
    fake = options.backend == "fake"
    options.rate = options.rate if options.rate is not None else (40.0 if fake else 6.0)
    options.swaps = options.swaps if options.swaps is not None else (200 if fake else 20)
    for name, least, most in (
        ("replicas", 1, ABOUT_REPLICAS),
        ("rate", 0.1, 1000.0),
        ("swaps", 1, 1000),
        ("rollback_every", 0, 1000),
        ("warmup", 0.0, 600.0),
        ("leak", 0, 64),
    ):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name.replace('_', '-')} is outside {least} to {most}")
    return options


def paths(text: str) -> list[Path]:
    """Return the files of ``text``, separated by commas. Raises ArgumentTypeError for one that does not exist."""
    found = [Path(part) for part in text.split(",") if part]
    for path in found:
        if not path.is_file():
            msg = f"there is no file {path}"
            raise argparse.ArgumentTypeError(msg)
    return found


def broken(result: dict[str, Any]) -> bool:
    """Return whether a promise is broken; of a run with a planted leak, whether that went unnoticed."""
    found = promises(result["figures"])
    if result["leak"]:
        return found[-1].met is not False
    return any(each.met is False for each in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or merge, print, write, and return the exit code."""
    options = parse(arguments)
    try:
        result = merge(options.merge) if options.merge else run(options)
    except (SwapError, servers.ServerError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result["figures"] = summarize(result["pieces"])
    text = json.dumps(result, indent=None if options.out else 2)
    report = markdown(result)
    if options.out:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{str(result['machine']['date'])[:10]}-{options.out}"
        stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(report, encoding="utf-8")
    print(text if options.json else report)
    return 1 if broken(result) else 0


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


if __name__ == "__main__":
    # Ended from outside, it still ends the service that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
