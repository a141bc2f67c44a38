"""Accuracy through HTTP: the service's COCO mAP beside that of Ultralytics' own ``val`` of the same weights.

    python loadtest/accuracy.py                                  # YOLO26n and YOLOv8n, fp32 and the default precision
    python loadtest/accuracy.py --weights mine.pt --images data/images
    python loadtest/accuracy.py --url http://127.0.0.1:8000 --model mine --weights mine.pt

Every picture is sent as its file is, asked for ``conf=0.001``, ``iou=0.7``, ``max_det=300``, and the boxes of the JSON
answers are matched with the labels and integrated by the code behind ``val``. Compared with it is
``val(rect=True, batch=1, conf=0.001)`` in fp32 of the head that serves: the one-to-one head where the weights have one
(``nms=False``; ``YOLO.val`` alone would take the other), else the NMS head.

Three habits of ``val`` are no work of the weights, and ``YOLO.predict`` has none of them, nor has a service: it puts a
grey border of half a stride or more around every tensor; it scores boxes that reach beyond the picture uncut; and after
an NMS head it lets one box stand for every class above the threshold instead of its best class alone. The second table
takes them away one by one. What is left, *val as predict*, is ``val`` of the same boxes that a client gets: the service
in fp32 must lie within 0.3 points of it. Its distance from ``val`` as it is stands beside that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import machine
import numpy as np
import pictures
import releases
import servers
from ultralytics_val import CONF, IOU, MAX_DET, Habit, Score, Ultralytics

from models.errors import SteelyardError
from models.types import Detections
from serve.client import SteelyardClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from serve.client import Box, DetectAnswer

ALLOWED = 0.3
"""Points of mAP50-95 by which a service in fp32 may differ."""
STEPS = (
    ("`val`", frozenset(Habit)),
    ("no border", frozenset({Habit.UNCUT, Habit.EVERY_CLASS})),
    ("cut at the edge", frozenset({Habit.EVERY_CLASS})),
    ("one class a box", frozenset[Habit]()),
)
"""From ``val`` as it is to ``val`` as predict."""
AT_ONCE = 4
OFFICIAL = ("yolo26n-coco.pt", "yolov8n-coco.pt")
RUNNING = "as it runs"


@dataclass(frozen=True, slots=True)
class Row:
    """One set of weights in one precision. digest: of the release that answered. steps: the scores of STEPS."""

    weights: str
    precision: str
    backend: str
    digest: str
    served: Score
    steps: tuple[Score, ...]

    @property
    def from_val(self) -> float:
        """Return points of mAP50-95 by which the service exceeds ``val`` as it is."""
        return self.served.map50_95 - self.steps[0].map50_95

    @property
    def from_predict(self) -> float:
        """Return points of mAP50-95 by which the service exceeds ``val`` as predict."""
        return self.served.map50_95 - self.steps[-1].map50_95

    def verdict(self, allowed: float = ALLOWED) -> str:
        """Return met or missed in fp32; other precisions carry no promise."""
        if self.precision != "fp32":
            return "no goal"
        return "met" if abs(self.from_predict) <= allowed else "missed"


def boxes(found: Iterable[Box]) -> Detections:
    """Return the boxes of an answer as arrays, in its order."""
    rows = [(box.x1, box.y1, box.x2, box.y2, box.confidence, box.class_id) for box in found]
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int32))


def ask(detect: Callable[[bytes], DetectAnswer], images: Sequence[Path]) -> tuple[dict[str, Detections], DetectAnswer]:
    """Return the boxes of every image by file name, and the last answer.

    Raises ServiceError, or ValueError where the answers came from more than one release.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda path: detect(path.read_bytes()), images))
    if len({answer.digest for answer in answers}) != 1:
        msg = "the release changed during the measurement; measure again when no promotion is under way"
        raise ValueError(msg)
    return {path.name: boxes(answer.boxes) for path, answer in zip(images, answers, strict=True)}, answers[-1]


def through(url: str, model: str | None, images: Sequence[Path]) -> tuple[dict[str, Detections], DetectAnswer]:
    """Ask a running service. Raises as ``ask`` does."""
    with SteelyardClient(url) as client:
        return ask(
            lambda data: client.detect(data, model=model, conf=CONF, iou=IOU, max_det=MAX_DET),
            images,
        )


def measure(options: argparse.Namespace, images: Sequence[Path]) -> list[Row]:
    """Return a row for each set of weights and precision, its own services started and ended on the way."""
    judges = {weights: Ultralytics(weights, images) for weights in options.weights}
    answers: list[tuple[Path, str, dict[str, Detections], DetectAnswer]] = []
    if options.url:
        answers.append((options.weights[0], options.served_as, *through(options.url, options.model, images)))
    else:
        names = {weights: f"accuracy-{number}" for number, weights in enumerate(options.weights)}
        with tempfile.TemporaryDirectory(prefix="steelyard-accuracy-") as folder:
            home = Path(folder) / "home"
            for weights, name in names.items():
                say(f"converting {weights.name} (once)")
                releases.register(releases.prepare(weights, model=name), home)
            for precision in options.precisions:
                say(f"asking a service in {precision}")
                models = [part for name in names.values() for part in ("--model", name)]
                with ExitStack() as stack:
                    environment = {"STEELYARD_PRECISION": precision}
                    server = stack.enter_context(servers.steelyard(*models, home=home, environment=environment))
                    answers += [(each, precision, *through(server.url, names[each], images)) for each in names]
    rows = []
    for weights, judge in judges.items():
        say(f"validating {weights.name} with Ultralytics")
        steps = tuple(judge.val(habits) for _, habits in STEPS)
        rows += [
            Row(weights.name, precision, backend_of(last), last.digest, judge.score(found), steps)
            for asked, precision, found, last in answers
            if asked == weights
        ]
    return rows


def backend_of(answer: DetectAnswer) -> str:
    """Return the runtime that an answer names."""
    metadata = answer.body.get("metadata")
    return str(metadata.get("backend")) if isinstance(metadata, dict) else "unknown"


def table(rows: Sequence[Row], allowed: float = ALLOWED) -> str:
    """Return the rows in Markdown."""
    titles = ("weights", "precision", "served", "`val` as predict", "difference", "`val`", "difference", "goal")
    lines = [f"| {' | '.join(titles)} |", "|---|---|---:|---:|---:|---:|---:|---|"]
    for row in rows:
        numbers = f"{_pair(row.served)} | {_pair(row.steps[-1])} | {row.from_predict:+.2f}"
        numbers += f" | {_pair(row.steps[0])} | {row.from_val:+.2f}"
        lines.append(f"| {row.weights} | {row.precision} | {numbers} | {row.verdict(allowed)} |")
    names = [name for name, _ in STEPS]
    lines += ["", f"| weights | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    steps = {row.weights: row.steps for row in rows}
    lines += [f"| {name} | {' | '.join(map(_pair, scores))} |" for name, scores in steps.items()]
    return "\n".join(lines)


def _pair(score: Score) -> str:
    return f"{score.map50_95:.2f} ({score.map50:.2f})"


def describe(options: argparse.Namespace, images: Sequence[Path]) -> dict[str, object]:
    """Return what was compared on what."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in images))
    return {
        "weights": {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in options.weights},
        "images": {"folder": str(options.images), "count": len(images), "sha256": digest.hexdigest()},
        "asked": {"conf": CONF, "iou": IOU, "max_det": MAX_DET},
        "machine": machine.describe(),
    }


def row_json(row: Row, allowed: float) -> dict[str, object]:
    """Return the row as it is written."""
    more = {"from_val": row.from_val, "from_predict": row.from_predict, "verdict": row.verdict(allowed)}
    steps = {name: asdict(found) for (name, _), found in zip(STEPS, row.steps, strict=True)}
    return {**asdict(row), **more, "steps": steps}


def say(text: str) -> None:
    """Tell on standard error what takes its time."""
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; leaves with 2 and one line where they make no sense."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    official = [releases.shared() / "weights" / name for name in OFFICIAL]
    parser.add_argument("--weights", type=Path, nargs="+", default=official, help=".pt files")
    parser.add_argument("--images", type=Path, default=releases.default_pictures(), help="folder beside 'labels'")
    parser.add_argument("--count", type=int, help="only so many pictures, evenly taken (default: all)")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "auto", "bf16", "fp16"], default=["fp32", "auto"])
    parser.add_argument("--url", help="a running service instead of services of its own")
    parser.add_argument("--model", help="the model to ask at --url (default: its first)")
    parser.add_argument("--served-as", default=RUNNING, help="the precision of --url; the goal is on fp32 only")
    parser.add_argument("--allowed", type=float, default=ALLOWED, help="points in fp32 (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    options = parser.parse_args(arguments)
    for path in options.weights:
        if not path.is_file():
            parser.error(f"{path} does not exist; name weights with --weights, or STEELYARD_SHARED")
    if options.url and len(options.weights) != 1:
        parser.error("--url needs the one --weights that the service serves")
    if options.count is not None and options.count < 1:
        parser.error("--count is at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and return 1 where fp32 is further from ``val`` as predict than allowed."""
    options = parse(arguments)
    try:
        images = pictures.find(options.images)
        if options.count is not None:
            images = images[:: max(1, len(images) // options.count)][: options.count]
        about = describe(options, images)
        rows = measure(options, images)
    except (SteelyardError, ValueError, servers.ServerError) as error:
        say(f"accuracy.py: {error}")
        return 2
    result = {
        **about,
        "allowed": options.allowed,
        "rows": [row_json(row, options.allowed) for row in rows],
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    names = ", ".join(each.name for each in options.weights)
    print(f"mAP50-95 (mAP50) in points: {names} on {len(images)} pictures of {options.images}\n")
    print(table(rows, options.allowed))
    return int(any(row.verdict(options.allowed) == "missed" for row in rows))


if __name__ == "__main__":
    servers.end_when_told()
    sys.exit(main())
