"""Rendered trays on disk, in the folder layout that Ultralytics trains from."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import cv2

from models.demo.renderer import CLASS_NAMES, Tray, render_tray

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HELD_OUT_SCENES = 240

_SEEDS_A_SET = 100_000
_FIRST_HELD_OUT_SEED = 10_000_000
_JPEG_QUALITY = 95
_WORTH_A_POOL = 64


def write_dataset(
    folder: Path, *, scenes: int, seed: int, size: int | tuple[int, int] = 320, held_out: int = HELD_OUT_SCENES
) -> Path:
    """Write training scenes and the held-out scenes as images/, labels/ and data.yaml.

    The held-out scenes are the same whatever `seed` is, and no training scene shares a seed with one of them: figures
    measured on them can be compared between any two models.

    Args:
        folder: created if missing.
        scenes: number of training scenes, 1-100 000.
        seed: which set of training scenes, 0-99; two sets share no scene.
        size: side of the square images, or (width, height), in pixels.
        held_out: number of held-out scenes, 1-100 000.

    Returns:
        Path of data.yaml.
    """
    count_fits = 0 < scenes <= _SEEDS_A_SET and 0 < held_out <= _SEEDS_A_SET
    if not (count_fits and 0 <= seed * _SEEDS_A_SET < _FIRST_HELD_OUT_SEED):
        message = f"cannot write {scenes} + {held_out} scenes of set {seed}: 1-100000 scenes, sets 0-99"
        raise ValueError(message)
    first = seed * _SEEDS_A_SET
    for split, seeds in (
        ("train", range(first, first + scenes)),
        ("val", range(_FIRST_HELD_OUT_SEED, _FIRST_HELD_OUT_SEED + held_out)),
    ):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        _write_scenes(partial(_write_scene, folder, split, size), seeds)
    names = "\n".join(f"  {index}: {name}" for index, name in enumerate(CLASS_NAMES))
    listing = folder / "data.yaml"
    listing.write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n", encoding="utf-8")
    return listing


def _write_scenes(write: Callable[[int], None], seeds: range) -> None:
    """Write the scene of every seed, on all cores if there are many."""
    if len(seeds) < _WORTH_A_POOL:
        for seed in seeds:
            write(seed)
        return
    # A forked child inherits the locks of OpenCV's threads without the threads, and waits for them for ever.
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        list(pool.map(write, seeds, chunksize=16))


def _write_scene(folder: Path, split: str, size: int | tuple[int, int], seed: int) -> None:
    """Render one scene and write its JPEG and its label file."""
    tray = render_tray(seed, size)
    path = folder / "images" / split / f"{seed:08d}.jpg"
    save_jpeg(path, tray, _JPEG_QUALITY)
    (folder / "labels" / split / f"{seed:08d}.txt").write_text(label_lines(tray), encoding="ascii")


def save_jpeg(path: Path, tray: Tray, quality: int) -> None:
    """Write a tray's picture.

    Args:
        path: file to write.
        tray: the tray.
        quality: JPEG quality, 1-100.
    """
    if not cv2.imwrite(str(path), tray.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]):
        message = f"cannot write {path}"
        raise OSError(message)


def label_lines(tray: Tray) -> str:
    """The tray's labels as Ultralytics reads them.

    Args:
        tray: the tray.

    Returns:
        One line a product: class, then centre x, centre y, width, height as shares (0-1) of the image.
    """
    height, width = tray.image.shape[:2]
    lines = []
    for (x1, y1, x2, y2), index in zip(tray.boxes.tolist(), tray.classes.tolist(), strict=True):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{index} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    return "".join(lines)
