"""Postprocessing, held against a slow reference with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import BackendError
from models.types import Contract, Detections, Thresholds

NAMES = ("a", "b", "c")
RAW = Contract("detect", NAMES, 32, 64, "raw")
END2END = Contract("detect", NAMES, 32, 64, "end2end")
_, PLACEMENT = letterbox(np.zeros((90, 128, 3), np.uint8), RAW)


def to_image(box: np.ndarray) -> np.ndarray:
    """Return one tensor box in pixels of the 90 x 128 image, clipped; float64."""
    x1, y1, x2, y2 = box.astype(np.float64)
    xs = (np.array((x1, x2)) - PLACEMENT.pad_x) / PLACEMENT.gain_x
    ys = (np.array((y1, y2)) - PLACEMENT.pad_y) / PLACEMENT.gain_y
    return np.array((xs[0].clip(0, 128), ys[0].clip(0, 90), xs[1].clip(0, 128), ys[1].clip(0, 90)))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def slow_raw(output: np.ndarray, limits: Thresholds, classes: frozenset[int] | None) -> list[tuple]:
    """Return (box, score, class) by greedy NMS, one candidate after the other."""
    candidates = []
    for column in output.T:
        best = int(column[4:].argmax())
        if column[4 + best] > limits.conf and (classes is None or best in classes):
            cx, cy, w, h = column[:4]
            candidates.append((np.array((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)), column[4 + best], best))
    candidates.sort(key=lambda one: -one[1])
    kept: list[tuple] = []
    for box, score, best in candidates:
        if all(best != other or overlap(box, rival) <= limits.iou for rival, _, other in kept):
            kept.append((box, score, best))
    return [(to_image(box), score, best) for box, score, best in kept[: limits.max_det]]


def random_raw(seed: int) -> np.ndarray:
    """Return a raw output of 60 anchors with distinct scores, crowded enough for the NMS to work."""
    random = np.random.default_rng(seed)
    boxes = np.stack((*random.uniform(10, 54, (2, 60)), *random.uniform(8, 30, (2, 60))))
    return np.concatenate((boxes, random.uniform(0, 1, (3, 60)))).astype(np.float32)


def same(found: Detections, expected: list[tuple]) -> None:
    """Demand the expected boxes in the expected order."""
    assert len(found) == len(expected)
    for index, (box, score, best) in enumerate(expected):
        assert np.allclose(found.boxes[index], box, atol=1e-3)
        assert found.scores[index] == np.float32(score)
        assert found.classes[index] == best


@given(
    seed=st.integers(0, 10_000),
    conf=st.floats(0, 1),
    iou=st.sampled_from([0.1, 0.45, 0.7, 0.95]),
    max_det=st.integers(1, 50),
    classes=st.none() | st.frozensets(st.integers(0, 2)),
)
def test_raw_head_against_the_slow_reference(
    seed: int, conf: float, iou: float, max_det: int, classes: frozenset[int] | None
) -> None:
    """Thresholds, class filter and NMS do what the loops do."""
    output = random_raw(seed)
    limits = Thresholds(conf, iou, max_det)
    same(postprocess(output, PLACEMENT, RAW, limits, classes), slow_raw(output, limits, classes))


@given(seed=st.integers(0, 10_000), conf=st.floats(0, 1), max_det=st.integers(1, 30))
def test_end2end_head_only_filters_and_sorts(seed: int, conf: float, max_det: int) -> None:
    """Every row above the threshold comes out once, by falling score."""
    random = np.random.default_rng(seed)
    boxes = np.sort(random.uniform(0, 64, (20, 2, 2)), axis=1).reshape(20, 4)
    output = np.column_stack((boxes, random.uniform(0, 1, 20), random.integers(0, 3, 20))).astype(np.float32)
    found = postprocess(output, PLACEMENT, END2END, Thresholds(conf, 0.7, max_det))
    rows = sorted((row for row in output if row[4] > conf), key=lambda row: -row[4])[:max_det]
    same(found, [(to_image(row[:4]), row[4], int(row[5])) for row in rows])


def test_class_filter_acts_before_the_nms() -> None:
    """A box of an unwanted class neither appears nor suppresses."""
    output = np.zeros((7, 2), np.float32)
    output[:4] = np.array((32, 32, 20, 20), np.float32)[:, None]
    output[4, 0], output[5, 1] = 0.9, 0.8
    found = postprocess(output, PLACEMENT, RAW, Thresholds(), frozenset({1}))
    assert found.classes.tolist() == [1]


@pytest.mark.parametrize("contract", [RAW, END2END])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_output_is_an_error(contract: Contract, value: float) -> None:
    """NaN never becomes zero boxes without a word."""
    output = random_raw(0) if contract is RAW else np.zeros((5, 6), np.float32)
    output[4, 1] = value
    with pytest.raises(BackendError, match="NaN"):
        postprocess(output, PLACEMENT, contract, Thresholds())


@pytest.mark.parametrize(("contract", "shape"), [(RAW, (8, 60)), (END2END, (300, 7)), (RAW, (7,)), (END2END, (6,))])
def test_unexpected_shapes_are_an_error(contract: Contract, shape: tuple[int, ...]) -> None:
    """A head that answers otherwise than its contract says is refused."""
    with pytest.raises(BackendError, match="shape"):
        postprocess(np.zeros(shape, np.float32), PLACEMENT, contract, Thresholds())


@pytest.mark.parametrize("contract", [RAW, END2END])
def test_nothing_found_is_empty(contract: Contract) -> None:
    """No box above the threshold gives empty arrays of the right kind."""
    output = np.zeros((7, 60) if contract is RAW else (300, 6), np.float32)
    assert len(postprocess(output, PLACEMENT, contract, Thresholds())) == 0
