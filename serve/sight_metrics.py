"""What versions see, as metrics: empty answers, the mix of classes and of scores, by which a drift of scenes shows.

An answer is only kept as it comes; what was kept is counted once a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from serve.instruments import Metric

if TYPE_CHECKING:
    from models.types import Detections
    from serve.instruments import MetricsSink

ANSWERS: Final = Metric(
    "steelyard_sight_answers_total",
    "Answers with the version's own thresholds and all classes.",
    ("model", "version"),
)
EMPTY: Final = Metric("steelyard_sight_empty_total", "Those of them without a box.", ("model", "version"))
BOXES: Final = Metric(
    "steelyard_sight_boxes_total",
    'Their boxes by class id; ids from 100 on are "other".',
    ("model", "version", "class"),
)
SCORES: Final = Metric("steelyard_sight_scores_total", "Their boxes with a score below le.", ("model", "version", "le"))
MOST_CLASSES: Final = 100
"""Class ids below have a series each."""
SCORE_BINS: Final = 10
EDGES: Final = (*(f"{edge / SCORE_BINS:g}" for edge in range(1, SCORE_BINS)), "+Inf")
MOST_KEPT: Final = 256
"""Answers kept at most; the next one counts them at once."""


class SightMetrics:
    """The instruments, made once a process."""

    def __init__(self, sink: MetricsSink) -> None:
        """Make them in ``sink``."""
        self.answers = sink.counter(ANSWERS)
        self.empty = sink.counter(EMPTY)
        self.boxes = sink.counter(BOXES)
        self.scores = sink.counter(SCORES)


class SightObserver:
    """Counts for one model. Belongs to one thread."""

    def __init__(self, metrics: SightMetrics, model: str) -> None:
        """Count into ``metrics`` under ``model``."""
        self._metrics, self._model = metrics, model
        self._kept: list[tuple[str, Detections]] = []

    def begin(self, version: str) -> None:
        """Show what ``version`` has not done yet as 0; it has no classes before its first box."""
        labels = {"model": self._model, "version": version}
        self._metrics.answers.inc(labels, 0.0)
        self._metrics.empty.inc(labels, 0.0)
        for edge in EDGES:
            self._metrics.scores.inc({**labels, "le": edge}, 0.0)

    def looked(self, version: str, found: Detections) -> None:
        """Keep one answer of ``version``."""
        self._kept.append((version, found))
        if len(self._kept) >= MOST_KEPT:
            self.tell()

    def tell(self) -> None:
        """Count what was kept."""
        kept, self._kept = self._kept, []
        for version in {each for each, _ in kept}:
            self._count(version, [found for each, found in kept if each == version])

    def _count(self, version: str, answers: list[Detections]) -> None:
        labels = {"model": self._model, "version": version}
        self._metrics.answers.inc(labels, float(len(answers)))
        self._metrics.empty.inc(labels, float(sum(not len(found) for found in answers)))
        classes = np.concatenate([found.classes for found in answers])
        scores = np.concatenate([found.scores for found in answers])
        for number, boxes in enumerate(np.bincount(np.minimum(classes, MOST_CLASSES)).tolist()):
            if boxes:
                name = str(number) if number < MOST_CLASSES else "other"
                self._metrics.boxes.inc({**labels, "class": name}, float(boxes))
        bins = np.minimum((scores * SCORE_BINS).astype(np.intp), SCORE_BINS - 1)
        below = np.bincount(bins, minlength=SCORE_BINS).cumsum().tolist()
        for edge, boxes in zip(EDGES, below, strict=True):
            self._metrics.scores.inc({**labels, "le": edge}, float(boxes))
