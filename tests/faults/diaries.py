"""Replicas that ask themselves and write down what they are answered: clients that no network comes between."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from PIL import Image
from ray_fleet import Replica

from models.errors import SteelyardError
from models.types import DetectOptions, RequestContext

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from serve.settings import Settings

# Ray's workers do not find this folder, so what they run of it travels to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PACE_S = 0.02
PATIENCE_S = 30.0
FOLDER = "diaries"


class Witness(Replica):
    """A replica with a client of its own, which writes a line for each answer."""

    async def __init__(self, settings: Settings, path: Path) -> None:  # type: ignore[misc]
        """Start as a replica does, then begin to ask."""
        await super().__init__(settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.diary = path.open("a", buffering=1, encoding="utf-8")
        self.asking = asyncio.get_running_loop().create_task(self.ask())

    async def ask(self) -> None:
        """Ask for ever, one image after another."""
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(buffer, "PNG")
        while True:
            sent, generation, code = time.monotonic(), -1, ""
            try:
                context = RequestContext("diary", sent + PATIENCE_S)
                generation = (await self.engine.detect(buffer.getvalue(), DetectOptions(), context)).generation
            except SteelyardError as error:
                code = error.code
            self.diary.write(json.dumps([sent, time.monotonic(), generation, code]) + "\n")
            await asyncio.sleep(PACE_S)


@dataclass(frozen=True, slots=True)
class Line:
    """One answer. sent, answered: monotonic seconds, the same clock for all processes; generation: -1 for an error."""

    replica: str
    sent: float
    answered: float
    generation: int
    code: str


def start_witness(settings: Settings, name: str, **options: Any) -> Any:
    """Start a witness; return its handle at once. options: Ray's, such as the node's resource."""
    witness = ray.remote(Witness).options(name=f"SERVE_REPLICA::t#{name}", namespace="serve", num_cpus=0, **options)
    return witness.remote(settings, settings.root / FOLDER / name)


def read(home: Path) -> dict[str, list[Line]]:
    """Return what every witness of the service in ``home`` wrote, oldest first, by its name."""
    found = {}
    for path in sorted((home / FOLDER).iterdir()):
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        found[path.name] = [Line(path.name, *json.loads(line)) for line in lines]
    return found


def regressions(diaries: Mapping[str, Iterable[Line]]) -> list[Line]:
    """Return the answers that break I7: of a lower generation than one that anybody had when they were asked for."""
    good = sorted((line for lines in diaries.values() for line in lines if not line.code), key=lambda e: e.answered)
    asked = sorted(good, key=lambda e: e.sent)
    found, newest, position = [], 0, 0
    for line in asked:
        while position < len(good) and good[position].answered < line.sent:
            newest = max(newest, good[position].generation)
            position += 1
        if line.generation < newest:
            found.append(line)
    return found
