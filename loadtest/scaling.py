"""What the work costs as it grows: replicas, bytes of an image, models in a replica, clients; one table each.

    python loadtest/scaling.py --only clients,bytes --seconds 5
    python loadtest/scaling.py --out scaling

Each row is a service of its own under a closed loop, but for clients and bytes, which share one. Everything is measured
twice: what comes often gets a network of its own meanwhile, and the second time tells what the work costs from then on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import machine
import measures
import numpy as np
import pictures
import releases
import servers
from rich.console import Console
from table import number, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RESULTS = Path(__file__).resolve().parent / "results"
REPLICAS = (1, 2, 3, 4)
MODELS = (1, 2, 3)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
KILOBYTES = (64, 128, 256, 512, 1024, 2048, 5120)
MODEL = ("--model", releases.MODEL)
LOAD_CLIENTS = 8
WARMUP = 1600
COLUMNS = ("images/s", "the first time", "p50 ms", "p99 ms", "CPU ms an image", "memory MiB", "failed")
QUALITY = 90
"""JPEG quality of the enlarged photographs; a photograph's bytes then grow about as its pixels."""
STEP = 1.15
"""Factor between two tries at a size; a photograph may miss its bytes by a seventh."""

Case = tuple[str, measures.Source, int]
"""A row's title, its pictures and its clients."""


def enlarged(picture: bytes, wanted: int) -> bytes:
    """Return the JPEG, scaled up or down until its file has about ``wanted`` bytes, as photographs of more pixels have.

    Raises ValueError where it cannot be decoded.
    """
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        msg = "a picture of the set cannot be decoded; name another set with --images"
        raise ValueError(msg)
    scale, best = 1.0, b""
    for _ in range(60):
        size = (max(round(image.shape[1] * scale), 32), max(round(image.shape[0] * scale), 32))
        data = cv2.imencode(".jpg", cv2.resize(image, size), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        if best and (len(data) > wanted) != (len(best) > wanted):
            return min(best, data, key=lambda each: abs(len(each) - wanted))
        best = data
        scale *= STEP if len(data) < wanted else 1 / STEP
    return best


class Scaling:
    """Measures rows; each is a title, a report and what the server took."""

    def __init__(self, options: argparse.Namespace, folder: Path, console: Console) -> None:
        """Measure nothing yet. folder: for homes and pictures."""
        self._options = options
        self._folder = folder
        self._console = console

    def clients(self) -> Iterator[dict[str, Any]]:
        """Yield a row a number of clients, from one service."""
        with servers.steelyard(*MODEL, home=self._home("clients")) as server:
            measures.warm_up(server, self._source(), WARMUP)
            yield from self._twice(server, [(str(clients), self._source(), clients) for clients in CLIENTS])

    def bytes(self) -> Iterator[dict[str, Any]]:
        """Yield a row a file size, from one service: the same photographs at more pixels."""
        originals = [path.read_bytes() for path in pictures.find(self._options.images)[:16]]
        cases = []
        for kilobytes in KILOBYTES:
            folder = self._folder / f"{kilobytes}-kb"
            folder.mkdir()
            made = [enlarged(original, 1024 * kilobytes) for original in originals]
            for index, data in enumerate(made):
                (folder / f"{index:02d}.jpg").write_bytes(data)
            mean = sum(map(len, made)) / len(made) / 1024
            cases.append((f"{kilobytes} ({mean:.0f})", self._source(folder), LOAD_CLIENTS))
        with servers.steelyard(*MODEL, home=self._home("bytes")) as server:
            measures.warm_up(server, self._source(), WARMUP)
            yield from self._twice(server, cases)

    def replicas(self) -> Iterator[dict[str, Any]]:
        """Yield a row a number of replicas, which share this machine's cores."""
        for replicas in REPLICAS:
            with servers.steelyard(
                *MODEL, "--replicas", str(replicas), home=self._home(f"replicas-{replicas}")
            ) as server:
                measures.warm_up(server, self._source(), WARMUP * replicas)
                yield from self._twice(server, [(str(replicas), self._source(), LOAD_CLIENTS)])

    def models(self) -> Iterator[dict[str, Any]]:
        """Yield a row a number of models in one replica, the first of which is asked."""
        for count in MODELS:
            names = [f"bench-{index}" for index in range(count)]
            home = self._home(f"models-{count}", names)
            chosen = [part for name in names for part in ("--model", name)]
            with servers.steelyard(*chosen, home=home) as server:
                measures.warm_up(server, self._source(), WARMUP)
                yield from self._twice(server, [(str(count), self._source(), LOAD_CLIENTS)])

    def _source(self, images: Path | None = None) -> measures.Source:
        return measures.Source(Path(), images or self._options.images)

    def _home(self, name: str, models: Sequence[str] = (releases.MODEL,)) -> Path:
        home = self._folder / name
        for model in models:
            releases.register(releases.prepare(self._options.weights, model=model, cache=self._options.cache), home)
        return home

    def _twice(self, server: servers.Server, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
        """Yield the rows of all ``cases`` as they are after each was measured once."""
        first = [self._row(server, case) for case in cases]
        for case, before in zip(cases, first, strict=True):
            yield self._row(server, case) | {"first": before["load"]}

    def _row(self, server: servers.Server, case: Case) -> dict[str, Any]:
        title, source, clients = case
        seconds = self._options.seconds
        report, took = measures.with_cpu(
            server, lambda: measures.load(server, source, seconds, "--clients", str(clients))
        )
        self._console.log(f"{title}: {report['rate']:.1f} images/s, p50 {report['p50_ms'] or 0:.1f} ms")
        return {"title": title, "load": report, **took}


TABLES: dict[str, tuple[str, Callable[[Scaling], Iterator[dict[str, Any]]]]] = {
    "clients": ("clients", Scaling.clients),
    "bytes": ("KiB an image (mean)", Scaling.bytes),
    "models": ("models in the replica", Scaling.models),
    "replicas": ("replicas", Scaling.replicas),
}


def markdown(result: dict[str, Any]) -> str:
    """Return a table a dimension, behind date, commit and machine."""
    about = result["machine"]
    parts = [
        f"## {about['date']}, commit {about['commit']}",
        f"{about['cpu']}, {about['cores']} cores, shared with the load.",
    ]
    for name, rows in result["tables"].items():
        cells = [
            [
                row["title"],
                number(row["load"]["rate"], 3),
                number(row["first"]["rate"], 3),
                number(row["load"]["p50_ms"], 3),
                number(row["load"]["p99_ms"], 3),
                number(row["cpu_ms"], 3),
                number(row["pss_mib"], 4),
                str(sum(row[each][what] for each in ("first", "load") for what in ("failed", "refused"))),
            ]
            for row in rows
        ]
        parts.append(table((TABLES[name][0], *COLUMNS), cells))
    return "\n\n".join(parts) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Rate, latency, CPU and memory as the work grows.")
    parser.add_argument("--only", default=",".join(TABLES), help=f"tables to make (default: {','.join(TABLES)})")
    parser.add_argument("--weights", type=Path, default=releases.default_weights(), help=".pt file")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="picture or folder")
    parser.add_argument("--cache", type=Path, default=releases.CACHE, help="folder of converted releases")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row (default: %(default)s)")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json and .md")
    options = parser.parse_args(arguments)
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in TABLES:
            parser.error(f"there is no table {name}; there are {', '.join(TABLES)}")
    if not 0.5 <= options.seconds <= 600.0:  # noqa: PLR2004 - bounds of sense
        parser.error("--seconds is outside 0.5 to 600")
    if not options.weights.is_file() or not options.images.exists():
        parser.error(f"{options.weights} or {options.images} does not exist: name others, or set STEELYARD_SHARED")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 0, or 2 where something did not start."""
    options = parse(arguments)
    console = Console(stderr=True)
    result: dict[str, Any] = {"machine": machine.describe(), "tables": {}}
    try:
        with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as folder:
            scaling = Scaling(options, Path(folder), console)
            for name in options.only:
                console.log(f"as {TABLES[name][0]} grow")
                result["tables"][name] = list(TABLES[name][1](scaling))
    except (servers.ServerError, measures.MeasureError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    if options.out:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{result['machine']['date'][:10]}-{options.out}"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    return 0


if __name__ == "__main__":
    servers.end_when_told()
    sys.exit(main())
