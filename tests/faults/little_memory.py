"""Run as a program: a real engine gets a second release when there is too little memory for it.

``python little_memory.py FOLDER ROOM``; ROOM is MiB of address space, or ``budget`` for a small memory budget instead.
Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from models import demo
from models.engine.backends.select import select_backend
from models.engine.engine import Engine, EngineSettings
from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.types import DetectOptions, RequestContext
from models.weights.golden import check_sight
from models.weights.release import open_release, read_folder

MIB = 1024 * 1024
CONTEXT = RequestContext("test", deadline=float("inf"))


async def main(folder: Path, room: str) -> dict[str, Any]:
    """Return what became of the second release, and whether the first still answers as before."""
    first = open_release("checkout", "1", read_folder(folder), expect_digest=None)
    second = replace(first, version="2", digest="2" * 64)
    budget = 260 if room == "budget" else 1500
    settings = EngineSettings(lanes=1, max_batch=1, threads=1, memory_budget_mb=budget)
    backend = select_backend("auto", precision="auto", threads=1, gpu=False)
    tray = demo.SAMPLE_TRAY.read_bytes()
    async with Engine(backend, settings, sight_test=check_sight) as engine:
        await engine.prepare(first)
        engine.flip(first.digest, 1)
        wanted = await _boxes(engine, tray)
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        if room != "budget":
            limit = psutil.Process().memory_info().vms + int(room) * MIB
            resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited[1]))
        step, permanent, why = "", None, ""
        try:
            await engine.prepare(second)
        except (ReleaseFaultError, ReleaseRejectedError) as error:
            step, permanent, why = error.step, error.permanent, f"{error} ({error.__cause__!r})"
        answers = await _boxes(engine, tray)
        serving = engine.serving
        later = None
        if room != "budget":
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            await engine.prepare(second)
            engine.flip(second.digest, 2)
            later = engine.serving.version if engine.serving and await _boxes(engine, tray) == wanted else None
        return {
            "step": step,
            "permanent": permanent,
            "why": why,
            "wanted": wanted,
            "answers": answers,
            "serving": serving.version if serving else None,
            "later": later,
        }


async def _boxes(engine: Engine, data: bytes) -> list[list[float]]:
    answer = await engine.detect(data, DetectOptions(), CONTEXT)
    found: list[list[float]] = answer.detections.boxes.round(1).tolist()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))) + "\n")
