"""The in-process rate: JPEG bytes to boxes through the engine alone, without HTTP and without Ray.

    python loadtest/in_process.py --clients 1,2,4,8 --seconds 8

The ceiling of the service: what it answers below this, its edge costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pictures
import releases
import uvloop
from report import percentile

from models.engine.backends.select import select_backend
from models.engine.engine import Engine, EngineSettings
from models.types import DetectOptions, RequestContext
from serve.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from models.engine.backends.backend import Backend
    from models.types import Release

DEADLINE_S = 60.0
MOST_CLIENTS = 256


@dataclass(frozen=True, slots=True)
class EngineRate:
    """What was measured. rate: images a second. cpu_ms: CPU milliseconds an image, all threads."""

    clients: int
    images: int
    seconds: float
    rate: float
    cpu_ms: float
    p50_ms: float | None
    p99_ms: float | None


@asynccontextmanager
async def serving(backend: Backend, release: Release, settings: EngineSettings) -> AsyncIterator[Engine]:
    """Give an engine that serves ``release``, and close it afterwards. Raises ReleaseRejectedError."""
    async with Engine(backend, settings) as engine:
        await engine.prepare(release)
        engine.flip(release.digest, 1)
        yield engine


async def drive(engine: Engine, bodies: Iterator[bytes], *, clients: int, seconds: float) -> EngineRate:
    """Let ``clients`` ask, each for its next picture when its last is answered, for ``seconds``."""
    latencies: list[float] = []
    began, cpu = time.monotonic(), time.process_time()

    async def client() -> None:
        while (sent := time.monotonic()) - began < seconds:
            await engine.detect(next(bodies), DetectOptions(), RequestContext("load", sent + DEADLINE_S))
            latencies.append(1e3 * (time.monotonic() - sent))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    ordered = sorted(latencies)
    return EngineRate(
        clients=clients,
        images=len(latencies),
        seconds=took,
        rate=len(latencies) / took,
        cpu_ms=1e3 * cpu / max(len(latencies), 1),
        p50_ms=percentile(ordered, 0.50),
        p99_ms=percentile(ordered, 0.99),
    )


async def measure(options: argparse.Namespace) -> list[EngineRate]:
    """Load the release into an engine with the service's own defaults and measure each number of clients."""
    release = releases.read(options.release or releases.prepare(options.weights))
    bodies = [path.read_bytes() for path in pictures.find(options.images)]
    backend = select_backend("auto", precision=options.precision, threads=options.threads, gpu=False)
    async with serving(backend, release, EngineSettings(threads=options.threads)) as engine:
        found = []
        await drive(engine, pictures.cycle(bodies, options.seed), clients=4, seconds=options.warmup)
        for clients in options.clients:
            images = pictures.cycle(bodies, options.seed)
            found.append(await drive(engine, images, clients=clients, seconds=options.seconds))
    return found


def counts(text: str) -> list[int]:
    """Return the whole numbers of ``text``, separated by commas, each 1 to MOST_CLIENTS. Raises ValueError."""
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= MOST_CLIENTS for number in numbers):
        msg = f"outside 1 to {MOST_CLIENTS}"
        raise ValueError(msg)
    return numbers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="The rate of the engine in one process, from encoded pictures.")
    parser.add_argument("--weights", type=Path, default=releases.default_weights(), help=".pt or .onnx file")
    parser.add_argument("--release", type=Path, help="folder of a release instead of weights")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="picture or folder")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: all cores, %(default)s")
    parser.add_argument("--clients", type=counts, default=[1, 4, 8], help="e.g. 1,2,4,8 (default: 1,4,8)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=6.0, help="seconds before, not counted (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pictures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.seconds <= 600.0 or not 0.0 <= options.warmup <= 600.0:  # noqa: PLR2004 - bounds of sense
        parser.error("--seconds and --warmup are at most 600")
    if options.release is None and not options.weights.is_file():
        parser.error(f"{options.weights} does not exist; name weights with --weights, or STEELYARD_SHARED")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    found = uvloop.run(measure(options))
    if options.json:
        print(json.dumps([asdict(run) for run in found], indent=2))
        return 0
    for run in found:
        print(
            f"{run.clients:3} at once  {run.rate:7.1f} images/s  {run.cpu_ms:6.2f} ms CPU an image  "
            f"p50 {run.p50_ms or 0:.1f} ms  p99 {run.p99_ms or 0:.1f} ms"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
