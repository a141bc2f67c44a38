"""The benchmark's options; ``--quick`` changes nothing but their defaults."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import peer_servers
import releases

if TYPE_CHECKING:
    from collections.abc import Sequence


def numbers(text: str) -> list[int]:
    """Return the client counts of ``text``, separated by commas, each 1 to 256. Raises ValueError."""
    found = [int(part) for part in text.split(",")]
    if not all(1 <= number <= 256 for number in found):  # noqa: PLR2004 - what load.py takes
        msg = "outside 1 to 256"
        raise ValueError(msg)
    return found


def names(text: str) -> list[str]:
    """Return the peers of ``text``, separated by commas. Raises ArgumentTypeError for one that does not exist."""
    found = [part for part in text.split(",") if part]
    for name in found:
        if name not in peer_servers.PEERS:
            msg = f"there is no peer {name}; there are {', '.join(peer_servers.PEERS)}"
            raise argparse.ArgumentTypeError(msg)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Compare Steelyard with the raw engine and with other servers.")
    parser.add_argument("--quick", action="store_true", help="one short round; rates are lower bounds")
    parser.add_argument("--weights", type=Path, default=releases.default_weights(), help=".pt file")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="picture or folder")
    parser.add_argument("--peers", type=names, help=f"built where need be: {', '.join(peer_servers.PEERS)}")
    parser.add_argument("--cache", type=Path, default=releases.CACHE, help="folder of environments and networks")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 with --quick")
    parser.add_argument("--seconds", type=float, help="of each load; default: 10, or 5 with --quick")
    parser.add_argument("--warmup", type=int, help="requests before; default: 2400, or 800 with --quick")
    parser.add_argument("--engine-warmup", type=float, help="seconds before, in one process; default: 60, or 20")
    parser.add_argument("--lone-warmup", type=float, help="seconds of one client before; default: 20, or 8")
    parser.add_argument("--clients", type=numbers, help="to sweep; default: 1,2,4,8,16, or only 8 with --quick")
    parser.add_argument("--idle", type=float, help="seconds to watch the idle service; default: 20, or 10 with --quick")
    parser.add_argument("--steady-requests", type=int, help="at 60 %% of peak; default: 2400, or 600 with --quick")
    parser.add_argument("--flood-seconds", type=float, help="at 130 %% of peak; default: 60, or 12 with --quick")
    parser.add_argument("--no-endurance", action="store_true", help="only the rounds")
    parser.add_argument("--seed", type=int, default=0, help="of the order of pictures and the Poisson clock")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json and .md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(arguments)
    quick = options.quick
    for name, full, short in (
        ("rounds", 3, 1),
        ("seconds", 10.0, 5.0),
        ("warmup", 2400, 800),
        ("engine_warmup", 60.0, 20.0),
        ("lone_warmup", 20.0, 8.0),
        ("clients", [1, 2, 4, 8, 16], [8]),
        ("idle", 20.0, 10.0),
        ("steady_requests", 2400, 600),
        ("flood_seconds", 60.0, 12.0),
    ):
        if getattr(options, name) is None:
            setattr(options, name, short if quick else full)
    for name, least, most in (
        ("rounds", 1, 50),
        ("seconds", 0.5, 600.0),
        ("warmup", 1, 10_000),
        ("engine_warmup", 0.0, 600.0),
        ("lone_warmup", 0.5, 600.0),
        ("idle", 1.0, 600.0),
        ("steady_requests", 10, 100_000),
        ("flood_seconds", 1.0, 600.0),
    ):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name.replace('_', '-')} is outside {least} to {most}")
    if not options.weights.is_file() or not options.images.exists():
        parser.error(f"{options.weights} or {options.images} does not exist: name others, or set STEELYARD_SHARED")
    return options
