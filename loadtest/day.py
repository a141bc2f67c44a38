"""A day of retail traffic over a thousand replicas, simulated: replica-hours and missed objectives of each policy.

    python loadtest/day.py
    python loadtest/day.py --out day --seed 1

The policy that serves is the one that is simulated, ``models/scaling/policy.py``; Ray's is that of the Ray installed.
Nothing is started and nothing is measured: README.md says what the model leaves out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import machine
import numpy as np
from day_fleet import Fleet, Machine
from day_policies import Fixed, RayDefault, Steelyard
from day_traffic import DAY_S, arrivals
from table import table

from models.scaling.policy import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from day_policies import Policy

RESULTS = Path(__file__).resolve().parent / "results"
PEAK_REPLICAS: Final = 1000
"""Replicas that the top of the day's curve keeps busy to nine tenths."""
LEAST, MOST = 10, 1200
START: Final = 40
"""Replicas at midnight, for every policy."""
OBJECTIVE_S: Final = 0.5
QUIET_S: Final = 120.0
ALL_SLOTS: Final = 100_000.0
TUNED: Final = {"target_ongoing_requests": 0.8, "upscale_delay_s": 5.0, "downscale_delay_s": QUIET_S}
"""What somebody who knows that a replica answers one image at a time would tell Ray's policy."""
MINUTE_S: Final = 60


def simulate(policy: Policy, images: Sequence[float], machine: Machine, *, start: int = START) -> dict[str, Any]:
    """Run a day under ``policy`` and return its sums, and a point a minute of what is plotted.

    images: that arrive, a number a second. What is still inside at the end is answered by nobody.
    """
    fleet = Fleet.of(start, machine, OBJECTIVE_S)
    seconds = len(images)
    # Columns: arrived, answered, shed, late, ready, paid.
    told = np.zeros((seconds, 6))
    changes = started = 0
    for now, arriving in enumerate(images):
        second = fleet.step(float(arriving))
        told[now] = (second.arrived, second.answered, second.shed, second.late, second.ready, second.paid)
        wanted = policy.decide(float(now), second, fleet)
        changes += wanted != fleet.ordered
        started += max(wanted - fleet.ordered, 0)
        fleet.order(wanted)
    sums = told.sum(axis=0)
    minutes = told[: seconds // MINUTE_S * MINUTE_S].reshape(-1, MINUTE_S, 6)
    arrived = np.maximum(minutes[:, :, 0].sum(axis=1), 1.0)
    return {
        "arrived": sums[0],
        "answered": sums[1],
        "shed": sums[2],
        "late": sums[3],
        "inside": fleet.inside,
        "missed": (sums[2] + sums[3]) / max(sums[0], 1.0),
        "shed_share": sums[2] / max(sums[0], 1.0),
        "replica_hours": sums[5] / 3600.0,
        "most_replicas": int(told[:, 5].max()),
        "changes": changes,
        "started": started,
        "minutes": {
            "images_a_second": np.round(minutes[:, :, 0].mean(axis=1), 1).tolist(),
            "replicas": np.round(minutes[:, :, 4].mean(axis=1), 1).tolist(),
            "missed": np.round((minutes[:, :, 2] + minutes[:, :, 3]).sum(axis=1) / arrived, 5).tolist(),
        },
    }


def policies(machine: Machine) -> dict[str, tuple[Callable[[], Policy], Machine]]:
    """Return by title how each policy is made, and the replica it looks at."""
    limits = Limits(LEAST, MOST, OBJECTIVE_S, int(machine.room), QUIET_S)
    all_seen = Machine(**{**asdict(machine), "slots": ALL_SLOTS})
    return {
        "Steelyard": (lambda: Steelyard(limits, machine), machine),
        "Ray Serve's default": (lambda: RayDefault({}, least=LEAST, most=MOST), machine),
        "Ray Serve's default, every request seen": (lambda: RayDefault({}, least=LEAST, most=MOST), all_seen),
        "Ray Serve's, tuned to this replica": (lambda: RayDefault(TUNED, least=LEAST, most=MOST), machine),
        "as many as the peak needs, always": (lambda: Fixed(PEAK_REPLICAS), machine),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the table of all policies."""
    cells = [
        [
            title,
            f"{day['replica_hours']:,.0f}",
            f"{100 * day['missed']:.3f} %",
            f"{100 * day['shed_share']:.3f} %",
            str(day["most_replicas"]),
            f"{day['changes']:,}",
            f"{day['started']:,}",
        ]
        for title, day in result["days"].items()
    ]
    head = (
        "policy",
        "replica-hours",
        "later than the objective or refused",
        "refused",
        "most replicas",
        "orders",
        "started",
    )
    images = max(day["arrived"] for day in result["days"].values())
    least = images / result["replica"]["rate"] / 3600.0
    return f"{table(head, cells)}\n\n{images:,.0f} images are {least:,.0f} replica-hours of work.\n"


def draw(result: dict[str, Any]) -> Any:
    """Return a figure: the replicas of each policy over the day above what the load needs, and what each misses."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - takes most of a second
    from plot import LIMIT_COLOUR, OTHER_COLOUR, OWN_COLOUR  # noqa: PLC0415 - likewise

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), layout="constrained", sharex=True)
    days = list(result["days"].items())[:2]
    load = np.array(days[0][1]["minutes"]["images_a_second"]) / result["replica"]["rate"]
    hours = np.arange(len(load)) / 60.0
    above.plot(hours, load, color=LIMIT_COLOUR, linewidth=1.0, label="replicas' worth of images arriving")
    for (title, day), colour, order in zip(days, (OWN_COLOUR, OTHER_COLOUR), (3, 2), strict=False):
        ready = day["minutes"]["replicas"]
        above.plot(hours, ready, color=colour, linewidth=1.2, label=f"{title}: ready replicas", zorder=order)
        share = f"{title}: {100 * day['missed']:.2f} %"
        below.plot(
            hours, 100 * np.array(day["minutes"]["missed"]), color=colour, linewidth=1.0, label=share, zorder=order
        )
    above.set_ylabel("replicas")
    below.set_ylabel("% late or refused")
    below.set_xlabel("hour of the day")
    for axes in (above, below):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Simulate a day of retail traffic under each policy.")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24.0, help="of the day from midnight (default: %(default)s)")
    parser.add_argument("--start", type=float, default=30.0, help="seconds in which a replica starts")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json, .md and .svg")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.hours <= 24.0 or not 1.0 <= options.start <= 600.0:  # noqa: PLR2004 - bounds of sense
        parser.error("--hours is outside 0.1 to 24, or --start outside 1 to 600")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, write; return 0."""
    options = parse(arguments)
    replica = Machine(start_s=options.start)
    images = arrivals(
        0.9 * PEAK_REPLICAS * replica.rate, seed=options.seed, seconds=min(round(3600 * options.hours), DAY_S)
    )
    days = {}
    for title, (make, seen_as) in policies(replica).items():
        begun = time.process_time()
        days[title] = simulate(make(), images.tolist(), seen_as)
        print(f"{title}: {time.process_time() - begun:.1f} s of CPU", file=sys.stderr)
    result = {
        "machine": machine.describe(),
        "seed": options.seed,
        "objective_s": OBJECTIVE_S,
        "replica": asdict(replica),
        "days": days,
    }
    if options.out:
        import matplotlib as mpl  # noqa: PLC0415 - takes most of a second

        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{str(result['machine']['date'])[:10]}-{options.out}"
        stem.with_suffix(".json").write_text(json.dumps(result) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
        with mpl.rc_context({"svg.hashsalt": "steelyard"}):
            draw(result).savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
