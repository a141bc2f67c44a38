"""Two answers of one image side by side: which boxes both versions saw, and how far they agree on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.evidence import MILLION, Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.types import Detections

SAME_BOX_IOU = 0.5


def compare(serving: Detections, candidate: Detections) -> Pairs:
    """Return what the answers of two versions have in common; both name classes by the same ids.

    The serving version's boxes choose in order of falling score, as in the COCO evaluation: each takes the free box of
    its class that overlaps it most, with an IoU of SAME_BOX_IOU or more. Those left over then take boxes of any class.
    """
    overlap = _iou(serving.boxes, candidate.boxes)
    rows, columns = np.nonzero(overlap >= SAME_BOX_IOU)
    best_first = np.lexsort((-overlap[rows, columns], rows))
    rows, columns = rows[best_first], columns[best_first]
    same = serving.classes[rows] == candidate.classes[columns]
    taken: tuple[set[int], set[int]] = (set(), set())
    matched = _pair(rows[same], columns[same], taken)
    crossed = _pair(rows, columns, taken)
    shift = sum(float(candidate.scores[column]) - float(serving.scores[row]) for row, column in matched)
    return Pairs(
        images=1,
        serving_boxes=len(serving),
        candidate_boxes=len(candidate),
        overlapping=len(matched) + len(crossed),
        matched=len(matched),
        score_shift=round(MILLION * shift),
        serving_empties=int(not len(serving)),
        candidate_empties=int(not len(candidate)),
    )


def _pair(rows: NDArray[np.intp], columns: NDArray[np.intp], taken: tuple[set[int], set[int]]) -> list[tuple[int, int]]:
    """Take every pair whose row and column are both still free, in the order given."""
    pairs = []
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    return pairs


def _iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return float64 (n, m), 0 to 1, of boxes (n, 4) and (m, 4) as x1 y1 x2 y2."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    sides = [
        np.clip(np.minimum.outer(a[:, end], b[:, end]) - np.maximum.outer(a[:, start], b[:, start]), 0.0, None)
        for start, end in ((0, 2), (1, 3))
    ]
    shared = sides[0] * sides[1]
    union = np.add.outer((a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)) - shared
    overlap: NDArray[np.float64] = shared / np.maximum(union, 1e-9)
    return overlap
