"""The native answer's results against those of the installed ultralytics."""

from __future__ import annotations

import numpy as np
import torch
from ultralytics.engine.results import Results

from models.types import Answer, Detections, ReleaseId, Thresholds, Timings
from serve.protocols.native_answer import summary


def test_results_equal_ultralytics_summary() -> None:
    """Both round the same float32 values, in pixels and normalized, for every number of decimals."""
    random = np.random.default_rng(0)
    boxes = np.sort(random.uniform(0, 480, (200, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    scores = np.sort(random.random(200).astype(np.float32))[::-1].copy()
    classes = random.integers(0, 3, 200).astype(np.int32)
    release = ReleaseId("checkout", "1", "0" * 64)
    found = Detections(boxes, scores, classes)
    answer = Answer(found, (480, 640), Timings(), release, 1, "fake", ("a", "b", "c"), Thresholds())
    rows = torch.from_numpy(np.concatenate([boxes, scores[:, None], classes[:, None]], axis=1, dtype=np.float32))
    theirs = Results(np.zeros((480, 640, 3), np.uint8), path="", names=dict(enumerate(answer.names)), boxes=rows)
    for normalize in (False, True):
        for decimals in range(11):
            expected = theirs.summary(normalize=normalize, decimals=decimals)
            assert summary(answer, normalize=normalize, decimals=decimals) == expected
