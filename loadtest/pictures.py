"""The pictures of a load: one file or all of a folder, in a random order that a seed fixes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
MOST_PICTURES = 4096
"""All pictures of a load are kept in memory."""


def find(path: Path) -> list[Path]:
    """Return ``path`` itself if it is a file, else every picture below it, sorted.

    Raises ValueError, in one sentence, where there is none or far too many.
    """
    if path.is_file():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if not found:
        msg = f"{path} is neither a picture nor a folder with pictures ({', '.join(sorted(SUFFIXES))} files)"
        raise ValueError(msg)
    if len(found) > MOST_PICTURES:
        msg = f"{path} holds {len(found)} pictures, the limit is {MOST_PICTURES}; name a smaller folder"
        raise ValueError(msg)
    return found


def order(count: int, seed: int) -> Iterator[int]:
    """Yield indices 0 to ``count`` - 1 for ever: every pass holds each once, in another random order.

    Equal seeds give equal orders, so that two measurements see the same pictures in the same order.
    """
    if count < 1:
        msg = "there must be at least one picture"
        raise ValueError(msg)
    chance = random.Random(seed)
    indices = list(range(count))
    while True:
        chance.shuffle(indices)
        yield from indices


def cycle(pictures: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Yield ``pictures`` for ever in the order of ``order``."""
    for index in order(len(pictures), seed):
        yield pictures[index]
