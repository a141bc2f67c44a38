"""The raw engine rate: what OpenVINO alone does with the same pictures, decoded and letterboxed beforehand.

    python loadtest/raw.py --seconds 10
    python loadtest/raw.py --best

The ceiling of any server on this machine: the network of a Steelyard release (uint8 pixels in, scaling in the graph),
one network and stream a core, one thread a stream that runs one request after the other, nothing decoded, nothing
answered. With
``--best`` static and dynamic shapes and several numbers of requests in flight take turns, and the fastest is reported.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pictures
import releases

from models.engine.decode import decode
from models.engine.preprocess import letterbox
from serve.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.types import Contract, Release

NETWORK = "model.onnx"
MOST_SECONDS = 600.0
TRIES = 2
"""Turns that ``--best`` gives each way of running."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way of running: a static form a shape or one dynamic form, streams, requests in flight.

    apart: each stream has networks to itself, instead of one network having them all.
    """

    static: bool
    streams: int
    in_flight: int
    apart: bool = False


@dataclass(frozen=True, slots=True)
class RawRate:
    """What was measured. rate: images a second. cpu_ms: CPU milliseconds an image."""

    way: Way
    precision: str
    images: int
    shapes: int
    seconds: float
    rate: float
    cpu_ms: float


def tensors(paths: Sequence[Path], contract: Contract) -> list[NDArray[np.uint8]]:
    """Return the tensor of each picture, uint8 (1, h, w, 3) as the engine makes it."""
    return [letterbox(decode(path.read_bytes()), contract)[0][None] for path in paths]


class Runner:
    """The network compiled for one way of running. ``close`` is the garbage collector's."""

    def __init__(
        self, release: Release, way: Way, shapes: set[tuple[int, ...]], *, precision: str, threads: int
    ) -> None:
        """Compile every form and let each request of each run once per shape, so that nothing is built later.

        Args:
            release: holds the network.
            way: see Way.
            shapes: of all tensors to come, (1, h, w, 3).
            precision: ``auto`` takes bf16 where the CPU has it; ``fp32`` never does.
            threads: CPU threads of all streams together.

        """
        sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]  # it would report to its makers
        import openvino  # noqa: PLC0415 - takes a second to load

        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.way = way
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "f32"
        networks = way.streams if way.apart else 1
        config = {
            "NUM_STREAMS": way.streams // networks,
            "INFERENCE_NUM_THREADS": max(threads // networks, 1),
            "INFERENCE_PRECISION_HINT": self.precision,
            # Every static form has streams of its own: pinned, the first streams of all would share the first core.
            "ENABLE_CPU_PINNING": not way.static,
        }
        network = core.read_model(io.BytesIO(release.files[NETWORK].tobytes()))
        self._requests: list[dict[tuple[int, ...], Any]] = [{} for _ in range(way.in_flight)]
        dynamic = None if way.static else core.compile_model(network, "CPU", config)
        shared = None if dynamic is None else [dynamic.create_infer_request() for _ in range(way.in_flight)]
        for shape in sorted(shapes):
            if shared is None:
                model = network.clone()
                model.reshape(list(shape))
                compiled = [core.compile_model(model, "CPU", config) for _ in range(networks)]
                requests = [compiled[number % networks].create_infer_request() for number in range(way.in_flight)]
            else:
                requests = shared
            for own, request in zip(self._requests, requests, strict=True):
                request.infer([np.zeros(shape, np.uint8)])
                own[shape] = request

    def run(self, inputs: Sequence[NDArray[np.uint8]], *, seconds: float, seed: int) -> RawRate:
        """Run ``inputs`` in random order for ``seconds``, ``in_flight`` at once."""
        order = pictures.order(len(inputs), seed)
        lock = threading.Lock()
        done = [0] * self.way.in_flight
        errors: list[BaseException] = []
        end = time.monotonic() + seconds

        def drive(number: int) -> None:
            requests = self._requests[number]
            try:
                while time.monotonic() < end and not errors:
                    with lock:
                        tensor = inputs[next(order)]
                    requests[tensor.shape].infer([tensor], share_inputs=True, share_outputs=True)
                    done[number] += 1
            except BaseException as error:  # noqa: BLE001 - raised again on the thread that waits
                errors.append(error)

        threads = [threading.Thread(target=drive, args=(number,)) for number in range(self.way.in_flight)]
        began, cpu = time.monotonic(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took, cpu = time.monotonic() - began, time.process_time() - cpu
        if errors:
            raise errors[0]
        images = sum(done)
        return RawRate(
            way=self.way,
            precision=self.precision,
            images=images,
            shapes=len({tensor.shape for tensor in inputs}),
            seconds=took,
            rate=images / took,
            cpu_ms=1e3 * cpu / max(images, 1),
        )


def ways(cores: int, *, best: bool) -> list[Way]:
    """Return the ways to try; without ``best`` only the usual one."""
    usual = Way(static=True, streams=cores, in_flight=cores, apart=True)
    if not best:
        return [usual]
    more = Way(static=True, streams=cores, in_flight=cores + 1, apart=True)
    together = Way(static=True, streams=cores, in_flight=cores)
    dynamic = [Way(static=False, streams=cores, in_flight=number) for number in (cores, cores + 1)]
    return list(dict.fromkeys([usual, more, together, *dynamic, Way(static=True, streams=1, in_flight=1)]))


def measure(options: argparse.Namespace) -> list[RawRate]:
    """Return the median run of each way, the fastest way first."""
    release = releases.read(options.release or releases.prepare(options.weights))
    inputs = tensors(pictures.find(options.images), release.contract)
    shapes = {tensor.shape for tensor in inputs}
    runners = [
        Runner(release, way, shapes, precision=options.precision, threads=options.threads)
        for way in ways(options.threads, best=options.best)
    ]
    for runner in runners:
        runner.run(inputs, seconds=min(options.seconds, 1.0), seed=options.seed)
    turns = TRIES if options.best else 1
    runs = [
        [runner.run(inputs, seconds=options.seconds, seed=options.seed) for runner in runners] for _ in range(turns)
    ]
    medians = []
    for of_way in zip(*runs, strict=True):
        middle = statistics.median_low(run.rate for run in of_way)
        medians.append(next(run for run in of_way if run.rate == middle))
    return sorted(medians, key=lambda run: -run.rate)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="The rate of the runtime alone, on tensors made beforehand.")
    parser.add_argument("--weights", type=Path, default=releases.default_weights(), help=".pt or .onnx file")
    parser.add_argument("--release", type=Path, help="folder of a release instead of weights")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="picture or folder")
    parser.add_argument("--precision", choices=["auto", "fp32"], default="auto", help="default: bf16 where there is")
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: all cores, %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pictures")
    parser.add_argument("--best", action="store_true", help="try several ways, report the fastest first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.seconds <= MOST_SECONDS:  # noqa: PLR2004 - shorter runs say nothing
        parser.error(f"--seconds is outside 0.1 to {MOST_SECONDS:.0f}")
    if not 1 <= options.threads <= available_cores():
        parser.error(f"--threads is outside 1 to {available_cores()}")
    if options.release is None and not options.weights.is_file():
        parser.error(f"{options.weights} does not exist; name weights with --weights, or STEELYARD_SHARED")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    found = measure(options)
    if options.json:
        print(json.dumps([asdict(run) for run in found], indent=2))
        return 0
    for run in found:
        kind = "static" if run.way.static else "dynamic"
        print(
            f"{run.rate:7.1f} images/s  {run.cpu_ms:6.2f} ms CPU an image  {run.precision}, {kind}, "
            f"{run.way.streams} streams, {run.way.in_flight} in flight, {run.shapes} shapes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
