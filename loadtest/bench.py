"""The benchmark: raw engine, engine in one process, Steelyard and its peers over HTTP, in turns; one table.

    python loadtest/bench.py --quick
    python loadtest/bench.py --peers fastapi,pytriton --rounds 3 --out full

Only ratios within one run count: the machine's speed drifts. In each round every contestant has its turn between two
measurements of the raw engine, every other round in reverse order, and only one server runs at a time. README.md
beside this file says how to read the result.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import measures
import peer_servers
import pictures
import releases
import servers
from bench_options import parse
from goals import OWN
from rich.console import Console
from table import markdown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

RESULTS = Path(__file__).resolve().parent / "results"
IN_PROCESS = "in one process"
STEADY_SHARE = 0.6
FLOOD_SHARE = 1.3
SWAPS = ("2", "1", "2")
"""Versions promoted one after another while the memory is watched."""
PEER_WARMUP = 256
"""Requests before a peer is measured: none of them compiles anything under load."""
IMPORTANT = ("fastapi", "pytriton")
DEADLINE_MS = 30_000.0
"""The default of STEELYARD_REQUEST_TIMEOUT_S."""


class Bench:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, source: measures.Source, home: Path, console: Console) -> None:
        """Measure nothing yet. home: of the Steelyard service, with the release registered."""
        self.options = options
        self.source = source
        self.notes: list[str] = []
        self._home = home
        self._console = console
        self._best_clients: dict[str, int] = {}

    def rounds(self, contestants: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rounds: raw engine before, each contestant in turn, raw engine after."""
        found = []
        failed: set[str] = set()
        for number in range(self.options.rounds):
            one: dict[str, Any] = {"servers": {}, "raw_before": self._raw(number)}
            for name in contestants if number % 2 == 0 else contestants[::-1]:
                with self._doing(f"round {number + 1}: {name}"):
                    if name == IN_PROCESS:
                        clients = (1, 4, 8) if number == 0 else (1, self._best_clients[IN_PROCESS])
                        one["in_process"] = measures.in_process(
                            self.source, self.options.seconds, clients, warmup_s=self.options.engine_warmup
                        )
                        self._best_clients[IN_PROCESS] = one["in_process"]["clients"]
                        self._say(f"{one['in_process']['rate']:.1f} images/s in one process")
                    elif name == OWN:
                        one["servers"][name] = self._server(name)
                    elif name not in failed:
                        try:
                            one["servers"][name] = self._server(name)
                        except (servers.ServerError, measures.MeasureError) as error:
                            # A peer that does not run here must not cost the hour that the others took.
                            failed.add(name)
                            self._say(f"{name} could not be measured: {error}")
                            # The rest names this machine's folders.
                            self.notes.append(f"{name} could not be measured: {str(error).splitlines()[-1]}")
            one["raw_after"] = self._raw(number)
            found.append(one)
        return found

    def endurance(self) -> dict[str, Any]:
        """Return what Steelyard does idle, at a steady rate, flooded, and during swaps, in one more start."""
        options, found = self.options, {}
        with servers.steelyard("--model", releases.MODEL, home=self._home) as server:
            with self._doing("steelyard: warming up"):
                measures.warm_up(server, self.source, options.warmup)
                measures.load(server, self.source, options.lone_warmup, "--clients", "1")
                lone = measures.load(server, self.source, options.seconds, "--clients", "1")
            with self._doing(f"steelyard: idle for {options.idle:.0f} s"):
                found["idle"] = measures.idle(server, options.idle)
                self._say(f"idle {found['idle']['percent']:.1f} % of a core")
            clients = str(self._best_clients.get(OWN, 8))
            with self._doing("steelyard: at 60 % of peak"):
                peak = measures.load(server, self.source, options.seconds, "--clients", clients)["rate"]
                found["steady"] = self._poisson(server, STEADY_SHARE * peak, options.steady_requests)
                found["steady"] |= {"peak": peak, "lone_p50_ms": lone["p50_ms"]}
            with self._doing("steelyard: at 130 % of peak"):
                flood = FLOOD_SHARE * peak
                found["flooded"] = self._poisson(server, flood, int(flood * options.flood_seconds)) | {"peak": peak}
            with self._doing("steelyard: memory during swaps"):
                found["memory"] = self._memory(server)
        return found

    def _raw(self, number: int) -> dict[str, Any]:
        with self._doing(f"round {number + 1}: raw engine"):
            found = measures.raw(self.source, self.options.seconds)
            self._say(f"{found['rate']:.1f} images/s, {found['cpu_ms']:.1f} ms CPU an image: raw engine")
            return found

    def _server(self, name: str) -> dict[str, Any]:
        options = self.options
        with self._start(name) as server:
            measures.warm_up(server, self.source, options.warmup if name == OWN else PEER_WARMUP)
            if name == OWN:
                measures.load(server, self.source, options.lone_warmup, "--clients", "1")
            lone = measures.load(server, self.source, options.seconds, "--clients", "1")
            if len(options.clients) == 1:
                self._best_clients[name] = options.clients[0]
            if name not in self._best_clients:
                sweep = {
                    clients: measures.load(server, self.source, min(options.seconds, 5.0), "--clients", str(clients))[
                        "rate"
                    ]
                    for clients in options.clients
                }
                self._best_clients[name] = max(sweep, key=lambda clients: sweep[clients])
            clients = str(self._best_clients[name])
            peak, took = measures.with_cpu(
                server, lambda: measures.load(server, self.source, options.seconds, "--clients", clients)
            )
        self._say(f"{peak['rate']:.1f} images/s, lone p50 {lone['p50_ms']:.1f} ms, {took['cpu_ms']:.1f} ms CPU: {name}")
        for report in (lone, peak):
            if report["failed"] or report["refused"]:
                self.notes.append(
                    f"{name}: {report['failed']} failed, {report['refused']} refused: {report['failures']}"
                )
        return {"ready_s": server.ready_s, "lone": lone, "peak": peak, **took}

    def _start(self, name: str) -> contextlib.AbstractContextManager[servers.Server]:
        if name == OWN:
            return servers.steelyard("--model", releases.MODEL, home=self._home)
        picture = pictures.find(self.options.images)[0].read_bytes()
        return peer_servers.serve(name, weights=self.options.weights, cache=self.options.cache, picture=picture)

    def _poisson(self, server: servers.Server, rate: float, requests: int) -> dict[str, Any]:
        seconds = 2 * requests / rate
        load, took = measures.with_cpu(
            server,
            lambda: measures.load(server, self.source, seconds, "--rate", f"{rate:.3f}", most=requests),
        )
        self._say(
            f"{load['rate']:.1f} of {load['offered']:.1f} requests/s answered, p99 {load['p99_ms'] or 0:.0f} ms, "
            f"{load['refused']} refused, {load['failed']} failed"
        )
        return {"load": load, **took}

    def _memory(self, server: servers.Server) -> dict[str, Any]:
        """Return the largest memory of a replica, in MiB, while all shapes are asked for and versions change."""
        seconds = 3 * self.options.seconds
        with measures.MemoryWatch(server) as watch, ThreadPoolExecutor(1) as pool:
            loading = pool.submit(measures.load, server, self.source, seconds, "--clients", "4")
            for version in SWAPS:
                measures.promote(server, releases.MODEL, version)
            load = loading.result()
        self._say(f"replica at most {watch.most / measures.MIB:.0f} MiB, {load['failed']} failed during swaps")
        return {"replica_mib": watch.most / measures.MIB, "load": load}

    def _say(self, line: str) -> None:
        self._console.log(line)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        with self._console.status(what):
            yield


def chosen_peers(options: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Return the peers to measure, built where they were asked for by name, and notes on those left out."""
    if options.peers is not None:
        for name in options.peers:
            peer_servers.build(peer_servers.PEERS[peer_servers.EXPORTER], options.cache, say)
            peer_servers.build(peer_servers.PEERS[name], options.cache, say)
        return options.peers, []
    built = [name for name in IMPORTANT if peer_servers.is_built(peer_servers.PEERS[name], options.cache)]
    missing = [name for name in IMPORTANT if name not in built]
    notes = [f"not compared with {name}: its environment is not built, `--peers {name}` builds it" for name in missing]
    return built, notes


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure everything and return the result, as it is written."""
    peers, notes = chosen_peers(options, console.log)
    with console.status("converting the weights (once)"):
        release = releases.prepare(options.weights, cache=options.cache)
    source = measures.Source(release, options.images, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as folder:
        home = Path(folder) / "home"
        releases.register(release, home)
        if not options.no_endurance:
            with console.status("converting a second version (once)"):
                other = releases.prepare(options.weights, copy=2, cache=options.cache)
            releases.register(other, home, promote=False)
        bench = Bench(options, source, home, console)
        result: dict[str, Any] = {
            "what": what(options),
            "machine": machine.describe(),
            "options": {
                name: value.name if isinstance(value, Path) else str(value) for name, value in vars(options).items()
            },
            "titles": {name: peer_servers.PEERS[name].title for name in peers} | {OWN: "**Steelyard**"},
            "deadline_ms": DEADLINE_MS,
            "rounds": bench.rounds([IN_PROCESS, OWN, *peers]),
        }
        if not options.no_endurance:
            result |= bench.endurance()
    return result | {"notes": [*notes, *bench.notes]}


def what(options: argparse.Namespace) -> str:
    """Return a sentence on what was measured."""
    count = len(pictures.find(options.images))
    return (
        f"{options.weights.name}, {count} picture{'s' * (count > 1)} of `{options.images.name}` in random order, "
        f"{options.rounds} rounds of {options.seconds:g} s a load, medians of ratios within a round."
    )


def write(result: dict[str, Any], name: str, folder: Path = RESULTS) -> tuple[Path, Path]:
    """Write the result as JSON and Markdown and return the two paths."""
    folder.mkdir(exist_ok=True)
    stem = f"{result['machine']['date'][:10]}-{name}"
    data, text = folder / f"{stem}.json", folder / f"{stem}.md"
    data.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    text.write_text(markdown(result), encoding="utf-8")
    return data, text


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 0, or 2 where something did not start."""
    options = parse(arguments)
    console = Console(stderr=True)
    try:
        result = run(options, console)
    except (servers.ServerError, measures.MeasureError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    if options.out:
        for path in write(result, options.out):
            console.log(f"written: {path}")
    print(json.dumps(result, indent=2) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    servers.end_when_told()
    sys.exit(main())
