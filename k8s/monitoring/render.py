"""Draws a dashboard's queries over what a Prometheus holds, without Grafana: the same panels, not the same pixels.

``python k8s/monitoring/render.py --prometheus http://127.0.0.1:9090 --minutes 5 --save dashboard.png``
"""

from __future__ import annotations

import argparse
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import matplotlib as mpl
from dashboards import BOARDS, COLUMNS, Panel, expression
from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS: Final = 150
DEADLINE_S: Final = 30.0
MOST_IN_LEGEND: Final = 8
MOST_DOTS: Final = 3
"""Points that would make no line to be seen."""


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus and a time in it (Unix seconds). window: PromQL's length of rates."""

    prometheus: str
    begin: float
    end: float
    window: str

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series of a query of the tables. Raises httpx.HTTPError."""
        step = max(1.0, (self.end - self.begin) / POINTS)
        text = expression(query).replace("$__rate_interval", self.window)
        asked = {"query": text, "start": self.begin, "end": self.end, "step": step}
        answer = httpx.post(f"{self.prometheus}/api/v1/query_range", data=asked, timeout=DEADLINE_S)
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
        return found


def legend_of(form: str, labels: dict[str, str]) -> str:
    """Return Grafana's legend of a series; what looks random, such as a replica's id, is cut."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], "")[:12], form).strip()


def draw(axes: Axes, panel: Panel, source: Source) -> None:
    """Draw one panel."""
    lines = []
    for form, query in panel.queries.items():
        for series in sorted(source.ask(query), key=lambda each: sorted(each["metric"].items())):
            points = [(float(at) - source.begin, float(value)) for at, value in series["values"]]
            kept = [(at, value) for at, value in points if math.isfinite(value)]
            if kept:
                lines.append((legend_of(form, series["metric"]), kept))
    for name, points in lines:
        axes.plot(
            *zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < MOST_DOTS else None
        )
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_xlim(0.0, source.end - source.begin)
    axes.set_ylim(bottom=0.0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if panel.unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_ylabel({"s": "seconds", "ops": "a second"}.get(panel.unit, ""), fontsize=7)
    if 0 < len(lines) <= MOST_IN_LEGEND:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    elif not lines:
        axes.text(0.5, 0.5, "nothing in this time", transform=axes.transAxes, ha="center", fontsize=7, alpha=0.6)


def main() -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of a Prometheus")
    parser.add_argument("--board", default="steelyard", choices=sorted(BOARDS), help="identity of the dashboard")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far to look back")
    parser.add_argument("--until", type=float, help="end of the picture (Unix seconds); now where absent")
    parser.add_argument("--window", default="1m", help="of rates; four times the scrape interval or more")
    parser.add_argument("--save", type=Path, required=True, help="PNG to write")
    given = parser.parse_args()
    mpl.use("agg")
    title, panels = BOARDS[given.board]
    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(4.2 * COLUMNS, 2.1 * rows), squeeze=False)
    end = time.time() if given.until is None else given.until
    source = Source(given.prometheus, end - 60.0 * given.minutes, end, given.window)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw(axes, panel, source)
    figure.suptitle(f"{title} (its queries, drawn by matplotlib; seconds since the first)", fontsize=10)
    figure.tight_layout()
    figure.savefig(given.save, dpi=90)


if __name__ == "__main__":
    main()
