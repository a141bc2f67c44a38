"""A step of load and back on one machine: do the replicas follow, and what do clients notice?

    python loadtest/autoscaling.py
    python loadtest/autoscaling.py --out autoscaling

The detector is the fake backend, which sleeps: one lane of one image of 50 ms answers 20 images a second, so that the
capacity of a replica is known and two cores carry several. Load comes by a Poisson clock at 20 %, 300 % and 20 % of it.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import cv2
import framing
import machine
import numpy as np
import uvloop
from autoscaling_figures import Phase, is_failure, judge, schedule_ends, verdicts, windows
from load import TRAY, target_of
from loops import Pool, open_loop, poisson_schedule
from servers import ServerError, end_when_told, steelyard
from table import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loops import Exchange

RESULTS = Path(__file__).resolve().parent / "results"
SERVICE_S: Final = 0.05
CAPACITY: Final = 1 / SERVICE_S
"""Images a second of one replica, by construction; measured it is a little less."""
OBJECTIVE_S: Final = 0.5
QUIET_S: Final = 30.0
"""The default of ``scale_down_after_s`` is longer; a run that shows the way back should not take an hour."""
ROOM: Final = 64
"""Images that wait in a replica, three seconds of its work: more would only be answered too late for the objective."""
CONNECTIONS: Final = 2048
TIMEOUT_S: Final = 60.0
SAMPLE_S: Final = 0.5
WIDTH: Final = 320
"""Of the picture: decoding is not what is measured here."""


def environment(most: int) -> dict[str, str]:
    """Return the settings of the service."""
    return {
        "STEELYARD_BACKEND": "fake",
        "STEELYARD_FAKE_SERVICE_S": str(SERVICE_S),
        "STEELYARD_LANES": "1",
        "STEELYARD_MAX_BATCH": "1",
        "STEELYARD_MAX_QUEUE": str(ROOM),
        "STEELYARD_MIN_REPLICAS": "1",
        "STEELYARD_MAX_REPLICAS": str(most),
        "STEELYARD_LATENCY_OBJECTIVE_S": str(OBJECTIVE_S),
        "STEELYARD_SCALE_DOWN_AFTER_S": str(QUIET_S),
    }


def picture() -> bytes:
    """Return the sample tray as a small JPEG."""
    image = cv2.imdecode(np.frombuffer(TRAY.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        msg = "the sample tray cannot be decoded"
        raise ValueError(msg)
    height = round(image.shape[0] * WIDTH / image.shape[1])
    return cv2.imencode(".jpg", cv2.resize(image, (WIDTH, height)))[1].tobytes()


def schedule_of(phases: Sequence[Phase], seed: int) -> list[float]:
    """Return the seconds at which requests are due, rising: a Poisson process whose rate changes with the phases."""
    times: list[float] = []
    for number, (phase, end) in enumerate(zip(phases, schedule_ends(phases), strict=True)):
        begin = end - phase.seconds
        most = round(10 * phase.rate * phase.seconds) + 10
        within = poisson_schedule(phase.rate, seconds=phase.seconds, most=most, seed=seed + number)
        times += [begin + at for at in within]
    return times


class ReplicaCount:
    """Asks the service once every SAMPLE_S, on a thread of its own, which replicas have been admitted."""

    def __init__(self, url: str) -> None:
        """Ask nothing yet."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="replica-count", daemon=True)
        self.seen: list[tuple[float, int]] = []
        self.silent = 0

    def start(self) -> None:
        """Begin; times count from now."""
        self._began = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """End within a few seconds."""
        self._stop.set()
        self._thread.join(10.0)

    def _ask_on(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            try:
                count = self._ask()
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                self.silent += 1
            else:
                self.seen.append((time.perf_counter() - self._began, count))

    def _ask(self) -> int:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=5)
        try:
            connection.request("GET", "/v1/models/checkout/rollout")
            return len(json.loads(connection.getresponse().read())["replicas"])
        finally:
            connection.close()


async def drive(url: str, path: str, times: list[float]) -> list[Exchange]:
    """Send a request at each of ``times`` and return what happened."""
    host = urlsplit(url).netloc
    request = framing.build(picture(), framing="raw", host=host, path=path)
    pool = Pool(target_of(url, TIMEOUT_S), CONNECTIONS)
    try:
        exchanges, _ = await open_loop(pool, itertools.repeat(request), times)
    finally:
        pool.close()
    return exchanges


def run(phases: Sequence[Phase], *, most: int, seed: int) -> dict[str, Any]:
    """Start a service, put the phases on it, and return the result. Raises ServerError."""
    with steelyard(environment=environment(most)) as server:
        counted = ReplicaCount(server.url)
        counted.start()
        try:
            exchanges = uvloop.run(drive(server.url, server.path, schedule_of(phases, seed)))
        finally:
            counted.stop()
    seconds = schedule_ends(phases)[-1]
    judged = judge(exchanges, counted.seen, phases, objective_s=OBJECTIVE_S, capacity=CAPACITY)
    return {
        "machine": machine.describe(),
        "phases": [[phase.name, phase.rate, phase.seconds] for phase in phases],
        "objective_s": OBJECTIVE_S,
        "scale_down_after_s": QUIET_S,
        "most_replicas": most,
        "ready_s": server.ready_s,
        "judged": judged,
        "failures": dict(
            Counter(f"{each.outcome.status} {each.outcome.code}" for each in exchanges if is_failure(each))
        ),
        "failed_at_s": sorted(round(each.due, 2) for each in exchanges if is_failure(each)),
        "late_p99_ms": _late(exchanges),
        "windows": windows(exchanges, seconds),
        "replicas": [[round(at, 2), count] for at, count in counted.seen],
        "unanswered_counts": counted.silent,
    }


def _late(exchanges: Sequence[Exchange]) -> float:
    return float(np.percentile([1e3 * each.late_s for each in exchanges], 99)) if exchanges else 0.0


def markdown(result: dict[str, Any]) -> str:
    """Return the goals, and what was measured."""
    judged = result["judged"]
    goals = [[goal, "met" if met else "missed"] for goal, met in verdicts(judged, result["objective_s"])]

    def text(value: float | None, unit: str) -> str:
        """Return the value with its unit, or a dash."""
        return "-" if value is None else f"{value:.0f} {unit}"

    figures = [
        ["first further replica after", text(judged["first_more_s"], "s")],
        ["as many as the load needs after", text(judged["enough_s"], "s")],
        ["most replicas", str(judged["most_replicas"])],
        ["p99 within the objective, and nobody refused, from", text(judged["recovered_s"], "s")],
        ["windows of 5 s over the objective after that", str(judged["windows_missed_later"])],
        ["p50 / p99 later on", f"{text(judged['settled_p50_ms'], 'ms')} / {text(judged['settled_p99_ms'], 'ms')}"],
        ["429", f"{judged['refused']} of {judged['requests']}, the last after {text(judged['last_refused_s'], 's')}"],
        ["5xx / broken connections", f"{judged['server_errors']} / {judged['broken']}"],
        ["first replica given back after the load fell", text(judged["first_fewer_s"], "s")],
        ["all given back after", text(judged["back_s"], "s")],
    ]
    about = result["machine"]
    head = (
        f"## {about['date']}, commit {about['commit']}\n\n{about['cpu']}, {about['cores']} cores, shared with the load."
    )
    return "\n\n".join((head, table(("goal", ""), goals), table(("since the step", ""), figures))) + "\n"


def draw(result: dict[str, Any]) -> Any:
    """Return a figure over time: load and replicas, p50 and p99, refusals and failures."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - takes most of a second
    from plot import LIMIT_COLOUR, OTHER_COLOUR, OWN_COLOUR  # noqa: PLC0415 - likewise

    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 7.2), layout="constrained", sharex=True)
    rows = result["windows"]
    at = [row["at_s"] for row in rows]
    width = at[1] - at[0] if len(at) > 1 else 1.0
    top.step(at, [row["sent"] / width / CAPACITY for row in rows], where="post", color=LIMIT_COLOUR, label="load")
    top.step(
        [when for when, _ in result["replicas"]],
        [count for _, count in result["replicas"]],
        where="post",
        color=OWN_COLOUR,
        label="replicas that serve",
    )
    top.set_ylabel("replicas' worth")
    for key, colour in (("p50_ms", OTHER_COLOUR), ("p99_ms", OWN_COLOUR)):
        known = [(row["at_s"], row[key]) for row in rows if row[key] is not None]
        middle.plot([when for when, _ in known], [value for _, value in known], color=colour, label=key[:3] + " in ms")
    middle.axhline(1e3 * result["objective_s"], color=LIMIT_COLOUR, linewidth=1.0, label="objective")
    middle.set_yscale("log")
    bottom.bar(at, [row["refused"] for row in rows], width, align="edge", color=LIMIT_COLOUR, label="refused (429)")
    bottom.bar(at, [row["failed"] for row in rows], width, align="edge", color="#b03030", label="failed")
    bottom.set_ylabel(f"in {width:.0f} s")
    bottom.set_xlabel("seconds")
    for axes in (top, middle, bottom):
        axes.legend(fontsize=8, frameon=False, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    about = result["machine"]
    caption = f"{about['date']}, commit {about['commit']}, {about['cpu']}, {about['cores']} cores"
    figure.suptitle(caption, fontsize=9, x=0.01, ha="left")
    return figure


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(description="Step from 20 % to 300 % of one replica's capacity, and back.")
    parser.add_argument("--calm", type=float, default=30.0, help="seconds before the step (default: %(default)s)")
    parser.add_argument("--high", type=float, default=120.0, help="seconds of the step (default: %(default)s)")
    parser.add_argument("--after", type=float, default=90.0, help="seconds after it (default: %(default)s)")
    parser.add_argument("--load", type=float, default=3.0, help="of the step, in replicas (default: %(default)s)")
    parser.add_argument("--most", type=int, default=6, help="most replicas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the Poisson clock (default: %(default)s)")
    parser.add_argument("--out", metavar="NAME", help="write results/<date>-NAME.json, .md and .svg")
    options = parser.parse_args(arguments)
    for name, least, most in (("calm", 5, 600), ("high", 70, 1200), ("after", 10, 1200), ("load", 0.5, 16)):
        if not least <= getattr(options, name) <= most:
            parser.error(f"--{name} is outside {least} to {most}")
    if not 1 <= options.most <= 16:  # noqa: PLR2004 - bounds of sense
        parser.error("--most is outside 1 to 16")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return 1 where a goal was missed, 2 where no service could be started, else 0."""
    options = parse(arguments)
    phases = (
        Phase("calm", 0.2 * CAPACITY, options.calm),
        Phase("step", options.load * CAPACITY, options.high),
        Phase("after", 0.2 * CAPACITY, options.after),
    )
    try:
        result = run(phases, most=options.most, seed=options.seed)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        import matplotlib as mpl  # noqa: PLC0415 - takes most of a second

        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{str(result['machine']['date'])[:10]}-{options.out}"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
        with mpl.rc_context({"svg.hashsalt": "steelyard"}):
            draw(result).savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    print(markdown(result))
    print(f"failures: {result['failures']}", file=sys.stderr)
    return 0 if all(met for _, met in verdicts(result["judged"], OBJECTIVE_S)) else 1


if __name__ == "__main__":
    end_when_told()
    sys.exit(main())
