"""The options of ``swap.py``, checked before anything starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import releases
from load import TRAY

if TYPE_CHECKING:
    from collections.abc import Sequence

ABOUT_REPLICAS = 64


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(
        description="Swap weights under load and hold what clients see against the promises."
    )
    parser.add_argument("--backend", default="fake", help="auto, openvino, onnxruntime, torch or fake (default)")
    parser.add_argument("--replicas", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rate", type=float, help="requests a second; default: 40, or 6 for a real backend")
    parser.add_argument("--swaps", type=int, help="default: 200, or 20 for a real backend")
    parser.add_argument("--rollback-every", type=int, default=10, help="every so many swaps is a rollback, 0 for none")
    parser.add_argument(
        "--hint-every", type=int, default=10, help="every so many moves the alias in MLflow and sends its webhook"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="keep networks that the machine has compiled, as returning versions do"
    )
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds of load before the first swap")
    parser.add_argument("--images", type=Path, default=TRAY, help="picture or folder (default: the sample tray)")
    parser.add_argument("--leak", type=int, default=0, metavar="MIB", help="plant a leak of so much a swap: a control")
    parser.add_argument("--cache", type=Path, default=releases.CACHE, help="folder of converted releases")
    parser.add_argument("--seed", type=int, default=0, help="of the Poisson clock")
    parser.add_argument("--merge", type=paths, metavar="FILES", help="pool results written before instead of measuring")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json and .md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(arguments)
    fake = options.backend == "fake"
    options.rate = options.rate if options.rate is not None else (40.0 if fake else 6.0)
    options.swaps = options.swaps if options.swaps is not None else (200 if fake else 20)
    for name, least, most in (
        ("replicas", 1, ABOUT_REPLICAS),
        ("rate", 0.1, 1000.0),
        ("swaps", 1, 1000),
        ("rollback_every", 0, 1000),
        ("hint_every", 0, 1000),
        ("warmup", 0.0, 600.0),
        ("leak", 0, 64),
    ):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name.replace('_', '-')} is outside {least} to {most}")
    return options


def paths(text: str) -> list[Path]:
    """Return the files of ``text``, separated by commas. Raises ArgumentTypeError for one that does not exist."""
    found = [Path(part) for part in text.split(",") if part]
    for path in found:
        if not path.is_file():
            msg = f"there is no file {path}"
            raise argparse.ArgumentTypeError(msg)
    return found
