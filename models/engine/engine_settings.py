"""The knobs of one engine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from models.engine.decode import MIB

if TYPE_CHECKING:
    from pathlib import Path

DOUBT: Final = 1.2
"""Noise makes two equal networks look further apart than this now and then, on a busy machine most of all."""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Knobs of one engine.

    lanes, max_batch: the plan; None lets the first preparation measure. max_queue: images that may wait, decoding
    included. threads: CPU threads for decoding. max_bytes, max_pixels, max_side: limits on one image.
    memory_budget_mb: MiB for loaded networks and their warm shapes together. decode_budget_mb: MiB that images may take
    while they are decoded, all together; one that is larger goes alone, up to this or ``decode.MAX_MEMORY``. doubt:
    ratio of a candidate's least time to the serving release's, >= 1, above which its pace is looked at again.
    processors: file by which all engines of this machine that are given it keep off each other's processors while
    something loads (``processors.py``); None: they do not.
    """

    lanes: int | None = None
    max_batch: int | None = None
    max_queue: int = 256
    threads: int = field(default_factory=_cores)
    max_bytes: int = 20 * MIB
    max_pixels: int = 64_000_000
    max_side: int = 16_384
    memory_budget_mb: int = 1500
    decode_budget_mb: int = 256
    doubt: float = DOUBT
    processors: Path | None = None
