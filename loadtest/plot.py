"""Draw a result: ``plot.py results/2026-01-02-full.json`` writes an SVG beside it.

Takes what ``bench.py`` and ``scaling.py`` write.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OWN_COLOUR = "#1f6f54"
OTHER_COLOUR = "#b7b7b7"
LIMIT_COLOUR = "#d08a2e"


def bars(axes: Any, title: str, names: Sequence[str], values: Sequence[float], own: int) -> None:
    """Draw one value a name, the ``own``-th in the colour that stands out; the first name is on top."""
    colours = [OWN_COLOUR if index == own else OTHER_COLOUR for index in range(len(names))]
    drawn = axes.barh(names, values, color=colours)
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def draw_bench(result: Mapping[str, Any]) -> Any:
    """Return a figure of rate, lone latency and CPU an image of every server, medians of the rounds."""
    rounds = result["rounds"]
    names = list(dict.fromkeys(name for each in rounds for name in each["servers"]))
    titles = [result.get("titles", {}).get(name, name).strip("*") for name in names]
    own = names.index("steelyard") if "steelyard" in names else -1

    def middle(*keys: str) -> list[float]:
        """Return the median over the rounds of what ``keys`` lead to, a value a server."""
        found = []
        for name in names:
            values = []
            for each in rounds:
                value = each["servers"].get(name)
                for key in keys:
                    value = None if value is None else value[key]
                if value is not None:
                    values.append(value)
            found.append(statistics.median(values) if values else 0.0)
        return found

    figure, axes = plt.subplots(3, 1, figsize=(8, 1.6 + 1.5 * len(names)), layout="constrained")
    bars(axes[0], "peak, images a second (line: the raw engine)", titles, middle("peak", "rate"), own)
    raw = [each[when]["rate"] for each in rounds for when in ("raw_before", "raw_after") if each.get(when)]
    if raw:
        axes[0].axvline(statistics.median(raw), color=LIMIT_COLOUR, linewidth=1.5)
    bars(axes[1], "one request at a time, p50 in ms", titles, middle("lone", "p50_ms"), own)
    bars(axes[2], "CPU of the whole server, ms an image", titles, middle("cpu_ms"), own)
    figure.suptitle(_caption(result["machine"]), fontsize=9, x=0.01, ha="left")
    return figure


def draw_scaling(result: Mapping[str, Any]) -> Any:
    """Return a figure with rate and median latency for each table."""
    tables = result["tables"]
    figure, axes = plt.subplots(len(tables), 2, figsize=(8, 2.4 * len(tables)), layout="constrained", squeeze=False)
    for (name, rows), (left, right) in zip(tables.items(), axes, strict=True):
        titles = [row["title"] for row in rows]
        for place, key, what in ((left, "rate", "images a second"), (right, "p50_ms", "p50 in ms")):
            place.plot(titles, [row["load"][key] or 0.0 for row in rows], color=OWN_COLOUR, marker="o")
            place.set_title(f"{what}, by {name}", loc="left", fontsize=10)
            place.set_ylim(bottom=0)
            place.tick_params(axis="x", labelsize=8)
            place.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_caption(result["machine"]), fontsize=9, x=0.01, ha="left")
    return figure


def _caption(machine: Mapping[str, Any]) -> str:
    return f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw each file named and return 0."""
    parser = argparse.ArgumentParser(description="Draw results of bench.py and scaling.py.")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files")
    for path in parser.parse_args(arguments).results:
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"{path} is no result: {error}")
        figure = draw_scaling(result) if "tables" in result else draw_bench(result)
        # Without date and hash salt the same result gives the same bytes.
        with mpl.rc_context({"svg.hashsalt": "steelyard"}):
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)
        print(path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
