"""Run as a program on a disk of one MiB: what the cache and the committed record do when it is full.

Prints one JSON object; ``python full_disk.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ReleaseFaultError
from models.weights.cache import Committed, CommittedStore, ReleaseCache

SMALL, LARGE = 200_000, 3_000_000


def main(folder: Path) -> dict[str, Any]:
    """Fill the disk and look at what is left."""
    cache, store = ReleaseCache(folder), CommittedStore(folder)
    kept = {"model.onnx": np.arange(SMALL, dtype=np.uint8)}
    cache.put("a" * 64, kept)
    store.save(Committed("m", 1, "1", "a" * 64))
    said, steps = "", []
    try:
        cache.put("b" * 64, {"model.onnx": np.ones(LARGE, np.uint8)})
    except ReleaseFaultError as error:
        said, steps = str(error), [error.step]
    after_refusal = sorted(path.name for path in (folder / "releases").iterdir())
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            full = True
        else:
            full = False
    try:
        store.save(Committed("m", 2, "2" * 2_000_000, "b" * 64))
    except ReleaseFaultError as error:
        steps.append(error.step)
    found, record = cache.get("a" * 64), store.load("m")
    filler.unlink()
    cache.put("c" * 64, kept)
    return {
        "said": said,
        "steps": steps,
        "full": full,
        "stored": after_refusal,
        "intact": found is not None and np.array_equal(found["model.onnx"], kept["model.onnx"]),
        "record": None if record is None else record.version,
        "partials": [str(path) for path in folder.rglob(".partial-*")],
        "again": cache.get("c" * 64) is not None,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
