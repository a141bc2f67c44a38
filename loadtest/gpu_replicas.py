"""The rate of several replicas that share one GPU and the cores: each a process of its own, from encoded pictures."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import pictures
import releases
from gpu_raw import Rate
from in_process import drive, serving

from models.engine.backends.select import select_backend
from models.engine.engine import EngineSettings
from models.errors import BackendError
from serve.settings import available_cores

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

SCRIPT = Path(__file__).resolve().with_name("gpu.py")
CLIENTS_A_REPLICA = 64
READY_S = 600.0
"""Longest time a replica may take to load; TensorRT builds its engine in it."""
WORTH_IT = 1.05
"""Another replica counts when it raises the rate by this factor."""


async def serve_pictures(options: argparse.Namespace) -> None:
    """Be one replica: load, say so, wait for the start, answer pictures for a while, say how many a second."""
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print what they like
    release = releases.read(options.release)
    bodies = [path.read_bytes() for path in pictures.find(options.images)]
    backend = select_backend(
        options.backend,
        precision=options.precision,
        threads=options.threads,
        gpu=True,
        gpu_share=options.share,
        engines=options.engines,
    )
    settings = EngineSettings(threads=options.threads, max_queue=4 * CLIENTS_A_REPLICA)
    async with serving(backend, release, settings) as engine:
        images = pictures.cycle(bodies, options.seed)
        await drive(engine, images, clients=CLIENTS_A_REPLICA, seconds=options.seconds)
        say.write("ready\n")
        await asyncio.to_thread(sys.stdin.readline)
        measured = await drive(engine, images, clients=CLIENTS_A_REPLICA, seconds=options.seconds)
        say.write(json.dumps({"rate": measured.rate}) + "\n")


def replicas_rate(count: int, options: argparse.Namespace) -> Rate:
    """Return the rate of ``count`` processes that share the GPU and the cores. Raises BackendError."""
    command = [sys.executable, str(SCRIPT), "--worker", "--seconds", str(options.seconds)]
    command += ["--release", str(options.release), "--images", str(options.images)]
    command += ["--backend", options.backend, "--precision", options.precision]
    command += ["--threads", str(max(available_cores() // count, 1)), "--share", str(1 / count)]
    command += ["--engines", str(options.engines)] if options.engines is not None else []
    workers = [
        subprocess.Popen(  # noqa: S603 - this project's own file
            [*command, "--seed", str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(count)
    ]
    try:
        with ThreadPoolExecutor(count) as pool:
            ready = [pool.submit(worker.stdout.readline) for worker in workers if worker.stdout is not None]
            wait(ready, READY_S)
            if any(worker.poll() is not None for worker in workers) or not all(line.done() for line in ready):
                end(workers)  # which also ends the waiting for their first line
                msg = f"{count} replicas did not start: what they say stands above"
                raise BackendError(msg)
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.write("\n")
                worker.stdin.flush()
        limit = 2 * options.seconds + 60.0
        rates = [json.loads(worker.communicate(timeout=limit)[0])["rate"] for worker in workers]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, OSError) as error:
        msg = f"one of {count} replicas failed while it was measured: what it says stands above"
        raise BackendError(msg) from error
    finally:
        end(workers)
    return Rate("replicas", count, 0, sum(rates))


def end(workers: Sequence[subprocess.Popen[str]]) -> None:
    """End the processes that still run."""
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
            worker.wait(10)


def wanted_replicas(rates: Sequence[Rate]) -> int:
    """Return the number of replicas past which none raises the rate by WORTH_IT; ``rates`` rise in their number."""
    best = rates[0]
    for rate in rates[1:]:
        if rate.rate > best.rate * WORTH_IT:
            best = rate
    return best.lanes
