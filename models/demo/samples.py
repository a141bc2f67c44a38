"""The sample tray of the README and the golden trays, rendered again from their seeds.

    python -m models.demo.samples --out models/demo

Their seeds belong neither to a training set nor to the held-out scenes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.demo.dataset import save_jpeg
from models.demo.renderer import CLASS_NAMES, Tray, render_tray

_JPEG_QUALITY = 88
_SAMPLE: tuple[int, tuple[int, int]] = (20_000_092, (640, 480))
_GOLDEN: tuple[tuple[int, tuple[int, int]], ...] = (
    (20_000_058, (640, 480)),
    (20_000_064, (640, 480)),
    (20_000_003, (640, 480)),
    (20_000_038, (640, 480)),
)


def write_samples(folder: Path) -> None:
    """Write sample-tray.jpg, sample-tray.json and golden/*.jpg.

    Args:
        folder: created if missing.
    """
    golden = folder / "golden"
    golden.mkdir(parents=True, exist_ok=True)
    sample = render_tray(*_SAMPLE)
    save_jpeg(folder / "sample-tray.jpg", sample, _JPEG_QUALITY)
    labels = json.dumps({"products": products_of(sample)}, indent=2)
    (folder / "sample-tray.json").write_text(labels + "\n", encoding="utf-8")
    for number, (seed, size) in enumerate(_GOLDEN, start=1):
        save_jpeg(golden / f"tray-{number}.jpg", render_tray(seed, size), _JPEG_QUALITY)


def products_of(tray: Tray) -> list[dict[str, object]]:
    """The tray's labels in words.

    Args:
        tray: the tray.

    Returns:
        For each product its `name` and its `box`, [x1, y1, x2, y2] in pixels.
    """
    pairs = zip(tray.classes.tolist(), tray.boxes.tolist(), strict=True)
    return [{"name": CLASS_NAMES[index], "box": box} for index, box in pairs]


def main() -> None:
    """Write the samples from the command line."""
    parser = argparse.ArgumentParser(description="Render the sample tray and the golden trays.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    write_samples(parser.parse_args().out)


if __name__ == "__main__":
    main()
