"""What a GPU can do and how much of it the engine gets, on a machine that has one.

    python loadtest/gpu.py --backend torch --seconds 5
    python loadtest/gpu.py --backend onnxruntime --engines .bench/engines --json

Three rates in images a second, of one release:

raw      the runtime alone: one batch that lies on the GPU already, run over and over; the best batch size counts
lanes    the engine's lanes: images in host memory stacked, copied, run, copied back and turned into boxes
replicas encoded pictures to boxes, in 1, 2, 4 … processes that share the GPU and the cores

``lanes ÷ raw`` says what the engine loses. Decoding is the CPU's work: while more replicas give more images, it is the
limit, and the number from which on they do not is what this GPU wants on this machine. Without a GPU it says so and
leaves with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np
import pictures
import releases
from gpu_raw import Rate, raw_rates, timed
from gpu_replicas import replicas_rate, serve_pictures, wanted_replicas
from table import table

from models.engine.backends.select import select_backend
from models.engine.backends.torch_queue import GPU_PLANS, require_gpu
from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import SettingsError, SteelyardError
from serve.settings import available_cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from models.engine.backends.backend import Backend, Plan
    from models.engine.preprocess import Placement
    from models.types import Release

MOST_SECONDS = 60.0


def lanes_rate(
    backend: Backend,
    release: Release,
    plan: Plan,
    images: Sequence[tuple[NDArray[np.uint8], Placement]],
    seconds: float,
) -> Rate:
    """Return the rate of the lanes of ``plan``, each doing with images of one shape what the engine does."""
    session = backend.load(release, plan)
    session.warm(images[0][0].shape[:2])
    batch = [images[index % len(images)] for index in range(plan.max_batch)]

    def serve(lane: int) -> float:
        def run() -> int:
            outputs = session.infer(np.stack([tensor for tensor, _ in batch]), lane)
            for output, (_, placement) in zip(outputs, batch, strict=True):
                postprocess(output, placement, release.contract, release.thresholds)
            return len(batch)

        return timed(run, seconds)

    try:
        with ThreadPoolExecutor(plan.lanes) as pool:
            rate = sum(pool.map(serve, range(plan.lanes)))
    finally:
        session.close()
    return Rate("lanes", plan.lanes, plan.max_batch, rate)


def common_shape(paths: Sequence[Path], release: Release) -> list[tuple[NDArray[np.uint8], Placement]]:
    """Return the pictures whose tensors have the shape that most have, as tensors with their placement."""
    tensors = [letterbox(decode(path.read_bytes()), release.contract) for path in paths]
    shape = Counter(tensor.shape for tensor, _ in tensors).most_common(1)[0][0]
    return [pair for pair in tensors if pair[0].shape == shape]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it."""
    options.release = options.release or releases.prepare(options.weights)
    release = releases.read(options.release)
    images = common_shape(pictures.find(options.images), release)
    shape = (images[0][0].shape[0], images[0][0].shape[1])
    before = raw_rates(release, shape, options)
    backend = select_backend(
        options.backend, precision=options.precision, threads=available_cores(), gpu=True, engines=options.engines
    )
    lanes = [lanes_rate(backend, release, plan, images, options.seconds) for plan in GPU_PLANS]
    raw = max([*before, *raw_rates(release, shape, options)], key=lambda rate: rate.rate)
    counts = [2**power for power in range(int(math.log2(options.most_replicas)) + 1)]
    replicas = [replicas_rate(count, options) for count in counts]
    best = max(lanes, key=lambda rate: rate.rate)
    return {
        "machine": machine.describe(),
        "backend": options.backend,
        "precision": options.precision,
        "shape": shape,
        "raw": asdict(raw),
        "rates": [asdict(rate) for rate in (*before, *lanes, *replicas)],
        "lanes_of_raw": best.rate / raw.rate,
        "replicas_of_raw": max(rate.rate for rate in replicas) / raw.rate,
        "wanted_replicas": wanted_replicas(replicas),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = result["machine"]
    rows = [
        [
            rate["what"],
            str(rate["lanes"]),
            str(rate["batch"] or "-"),
            f"{rate['rate']:.0f}",
            f"{rate['rate'] / result['raw']['rate']:.2f}",
        ]
        for rate in result["rates"]
    ]
    head = (
        f"{about['gpu']}; {about['cpu']}, {about['cores']} cores; {result['backend']} in {result['precision']}, "
        f"tensors of {result['shape'][0]} x {result['shape'][1]}."
    )
    found = (
        f"The lanes reach {result['lanes_of_raw']:.2f} of raw (goal 0.90). From encoded pictures the replicas reach "
        f"{result['replicas_of_raw']:.2f}; this GPU wants {result['wanted_replicas']} of them on this machine."
    )
    columns = ("what", "lanes or replicas", "batch", "images/s", "÷ best raw")
    return "\n\n".join([f"## {about['date']}, commit {about['commit']}", head, table(columns, rows), found])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="The engine's rate on a GPU against the runtime's own.")
    parser.add_argument("--weights", type=Path, default=releases.default_weights(), help=".pt file")
    parser.add_argument("--release", type=Path, help="folder of a release instead of weights")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="picture or folder")
    parser.add_argument("--backend", choices=["torch", "onnxruntime"], default="torch", help="default: %(default)s")
    parser.add_argument("--precision", choices=["auto", "fp16", "fp32"], default="auto", help="default: %(default)s")
    parser.add_argument("--engines", type=Path, help="folder for the engines that TensorRT builds")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (default: %(default)s)")
    parser.add_argument("--most-replicas", type=int, default=8, help="tried in powers of two (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pictures")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=available_cores(), help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 0.1 <= options.seconds <= MOST_SECONDS:  # noqa: PLR2004 - shorter runs say nothing
        parser.error(f"--seconds is outside 0.1 to {MOST_SECONDS:.0f}")
    if not 1 <= options.most_replicas <= 64:  # noqa: PLR2004 - each is a process with a network
        parser.error("--most-replicas is outside 1 to 64")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1, with one line, where there is no GPU or it fails."""
    options = parse(arguments)
    try:
        require_gpu(1.0)
    except SettingsError as error:
        print(f"nothing was measured, this needs an NVIDIA GPU: {error}", file=sys.stderr)
        return 1
    if options.release is None and not options.weights.is_file():
        print(f"{options.weights} does not exist; name weights with --weights, or STEELYARD_SHARED", file=sys.stderr)
        return 1
    try:
        if options.worker:
            asyncio.run(serve_pictures(options))
            return 0
        result = measure(options)
    except SteelyardError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2) if options.json else markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
