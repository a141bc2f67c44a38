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

import asyncio
import contextlib
import json
import secrets
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
from load import MOST_CONNECTIONS, target_of
from report import percentile
from swap_answers import verdicts
from swap_clients import Clients
from swap_figures import Window, first_answer, longest_gap, promises, summarize, within
from swap_options import parse
from swap_registry import Hand
from swap_service import (
    LEAK_POINT,
    Fleet,
    SwapError,
    digest_of,
    forget_compiled,
    make_releases,
    next_version,
    told_apart,
)
from swap_table import markdown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

RESULTS = Path(__file__).resolve().parent / "results"
CLIENTS = 16
AFTER_S = 1.0
"""What a window holds beyond the last flip: the retired version is freed then."""
MOST_SECONDS = 3600.0
TIMEOUT_S = 30.0
PAUSE_S = 0.1


class Run:
    """One service under load while its weights change."""

    def __init__(self, options: argparse.Namespace, server: servers.Server, home: Path, hand: Hand | None) -> None:
        """Measure nothing yet. The service has the four versions of ``make_releases`` registered.

        hand: moves the alias where ``options`` ask for that.
        """
        self.options = options
        self._hand = hand
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
                    action = action_of(number, self.options.rollback_every, self.options.hint_every)
                    back = action == "rollback"
                    wanted = previous if back else next_version(versions, serving, previous, differ)
                    await self._swap(fleet, wanted, action)
                    serving, previous = wanted, serving
            finally:
                done.set()
                await load
                self._clients.close()
            return self._piece(fleet, verdicts(self._clients.seen, known, exact=self.exact))

    async def _ask(self, fleet: Fleet, version: str, action: str) -> tuple[float, int]:
        """Return when the change was asked for, and its generation once every replica serves it. Raises SwapError."""
        clients = self._clients
        if action == "hint" and self._hand is not None:
            moved = await self._hand.move(version) - clients.wall_began
            return moved, await fleet.follow(self._hand, version)
        asked = clients.now()
        return asked, await (fleet.roll_back() if action == "rollback" else fleet.promote(version))

    async def _swap(self, fleet: Fleet, version: str, action: str) -> None:
        clients = self._clients
        if not self.options.compiled:
            await asyncio.to_thread(forget_compiled, self._home)
        if self.options.leak:
            await fleet.arm(LEAK_POINT, f"leak:{self.options.leak}")
        asked, generation = await self._ask(fleet, version, action)
        flips = [at - clients.wall_began for at in fleet.timeline.flips(generation).values()]
        end = max(flips) + AFTER_S
        await asyncio.sleep(end - clients.now())
        fleet.timeline.read()
        events = [event for event in fleet.timeline.events if event.at - clients.wall_began >= asked]
        work = [event.at - clients.wall_began - event.ms / 1e3 for event in events if event.kind != "flipped"]
        begin = min(work, default=asked)
        swap = {
            "action": action,
            "version": version,
            "generation": generation,
            "asked": asked,
            "window": (begin, end),
            "first_flip": min(flips),
            "took_ms": 1e3 * (max(flips) - asked),
            "prepared_ms": max((event.ms for event in events if event.kind == "prepared"), default=0.0),
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
            own = [
                (each.due, each.done)
                for each in seen
                if each.version == swap["version"] and each.status == httpx.codes.OK and swap["asked"] < each.done < end
            ]
            swap["first_ms"] = _ms(first_answer(own, swap["asked"], swap["first_flip"]))
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


def action_of(number: int, rollback_every: int, hint_every: int) -> str:
    """Return how swap ``number`` >= 1 is asked for: rollback, hint or promote; 0 means never."""
    if rollback_every and number % rollback_every == 0:
        return "rollback"
    return "hint" if hint_every and number % hint_every == hint_every // 2 else "promote"


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
        with contextlib.ExitStack() as stack:
            hand = None
            if options.hint_every:
                secret = environment["STEELYARD_WEBHOOK_SECRET"] = secrets.token_hex(16)
                hand = stack.enter_context(Hand(home, secret))
            server = stack.enter_context(servers.steelyard(*arguments, home=home, environment=environment))
            piece = uvloop.run(Run(options, server, home, hand).measure(digests))
    what = (
        f"{options.replicas} replicas, backend {options.backend}, {options.rate:g} requests/s by a Poisson clock from "
        f"{CLIENTS} clients, {len(pictures.find(options.images))} picture(s), every swap loads "
        f"{'a version that was compiled before' if options.compiled else 'and compiles a version anew'}, "
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
    servers.end_when_told()
    sys.exit(main())
