"""What versions see, as counters."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.types import Detections
from serve.prometheus import PrometheusSink
from serve.sight_metrics import EDGES, MOST_CLASSES, MOST_KEPT, SightMetrics, SightObserver


def detections(boxes: list[tuple[int, float]]) -> Detections:
    """Return a box a pair of class id and score."""
    return Detections(
        np.zeros((len(boxes), 4), np.float32),
        np.array([score for _, score in boxes], np.float32),
        np.array([number for number, _ in boxes], np.int32),
    )


def read(sink: PrometheusSink, name: str, label: str) -> dict[str, float]:
    """Return the values of a counter by one label."""
    found = re.findall(
        rf'^steelyard_sight_{name}_total{{(?:.*,)?{label}="([^"]+)".*}} (.+)$', sink.render().decode(), re.MULTILINE
    )
    return {key: float(value) for key, value in found}


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3000), st.floats(0.0, 1.0, width=32)), max_size=8), min_size=1, max_size=8
    )
)
def test_every_box_is_counted_once_by_class_and_in_each_bin_above(answers: list[list[tuple[int, float]]]) -> None:
    """Classes add up to the boxes, the last score bin holds them all, and no bin holds fewer than the one below."""
    sink = PrometheusSink()
    observer = SightObserver(SightMetrics(sink), "m")
    observer.begin("1")
    for boxes in answers:
        observer.looked("1", detections(boxes))
    observer.tell()
    observer.tell()
    boxes = [each for answer in answers for each in answer]
    assert read(sink, "answers", "version")["1"] == len(answers)
    assert read(sink, "empty", "version")["1"] == sum(not answer for answer in answers)
    classes = read(sink, "boxes", "class")
    assert sum(classes.values()) == len(boxes)
    assert classes.get("other", 0) == sum(number >= MOST_CLASSES for number, _ in boxes)
    scores = [read(sink, "scores", "le")[edge] for edge in EDGES]
    assert scores == sorted(scores)
    assert scores[-1] == len(boxes)


def test_a_model_of_many_classes_has_few_series() -> None:
    """A hundred ids have their own; the rest share one."""
    sink = PrometheusSink()
    observer = SightObserver(SightMetrics(sink), "m")
    observer.looked("1", detections([(number, 0.5) for number in range(3000)]))
    observer.tell()
    assert len(read(sink, "boxes", "class")) == MOST_CLASSES + 1


def test_answers_are_counted_by_version_and_never_pile_up() -> None:
    """A replica whose reports hang counts what it keeps by itself."""
    sink = PrometheusSink()
    observer = SightObserver(SightMetrics(sink), "m")
    for number in range(2 * MOST_KEPT):
        observer.looked(str(1 + number % 2), detections([]))
    assert read(sink, "answers", "version") == {"1": MOST_KEPT, "2": MOST_KEPT}
