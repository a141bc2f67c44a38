"""The engine against Ultralytics itself, on real COCO weights: registered, loaded, asked, compared box by box."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from coco import VERSIONS, checkpoint

from models.engine.backends.select import select_backend
from models.engine.engine import Engine
from models.torchvision_ops import ensure_torchvision_ops
from models.types import DetectOptions, Release, RequestContext
from models.weights.golden import box_iou, check_sight, match
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Detections
    from models.weights.fake_registry import FakeRegistry

pytestmark = pytest.mark.shared

PREDICT = {"yolo26n": {"nms": False}, "yolov8n": {}}
BUS, PERSON = 5, 0


@dataclass(frozen=True, eq=False)
class Pair:
    """One set of weights twice: as a release of ours, and as Ultralytics' model."""

    release: Release
    predict: Callable[[Path], Detections]


@pytest.fixture(scope="module", params=list(PREDICT))
def pair(
    request: pytest.FixtureRequest, shared: Path, coco: FakeRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """Open the registered weights, and load them into Ultralytics."""
    version = VERSIONS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    coco.fetch("coco", version, folder)
    digest = coco.version("coco", version).digest
    release = open_release("coco", version, read_folder(folder), expect_digest=digest)
    return Pair(release, ultralytics_predictor(checkpoint(shared, request.param), PREDICT[request.param]))


def ultralytics_predictor(source: Path, options: dict[str, object]) -> Callable[[Path], Detections]:
    """Return ``YOLO.predict`` at its defaults, as Detections."""
    ensure_torchvision_ops()
    from ultralytics import YOLO  # noqa: PLC0415 - takes seconds, and replaces functions of Pillow and OpenCV

    from models.types import Detections  # noqa: PLC0415 - used at run time only here

    model = YOLO(source)

    def predict(image: Path) -> Detections:
        boxes = model.predict(image, verbose=False, **options)[0].boxes
        return Detections(boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy().astype(np.int32))

    return predict


def detect_all(release: Release, images: list[Path], *, backend: str, precision: str) -> list[Detections]:
    """Serve ``release`` and return what it sees in each image; the sight test runs as in production."""

    async def scene() -> list[Detections]:
        runtime = select_backend(backend, precision=precision, threads=2, gpu=False)
        async with Engine(runtime, sight_test=check_sight) as engine:
            await engine.prepare(release)
            engine.flip(release.digest, 1)
            await engine.check_sight()
            context = RequestContext("compare", time.monotonic() + 300.0)
            answers = await asyncio.gather(
                *(engine.detect(image.read_bytes(), DetectOptions(), context) for image in images)
            )
            return [answer.detections for answer in answers]

    return asyncio.run(scene())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_bus_agrees_box_by_box(pair: Pair, backend: str) -> None:
    """In fp32 every box of bus.jpg lies within 1 pixel and 0.01 of YOLO.predict: 1 bus and 4 persons."""
    pytest.importorskip(backend)
    from ultralytics import ASSETS  # noqa: PLC0415 - as above

    image = Path(ASSETS) / "bus.jpg"
    theirs = pair.predict(image)
    (ours,) = detect_all(pair.release, [image], backend=backend, precision="fp32")
    assert sorted(theirs.classes.tolist()) == sorted(ours.classes.tolist()) == [PERSON] * 4 + [BUS]
    for box, score, class_id in zip(theirs.boxes, theirs.scores, theirs.classes, strict=True):
        same = ours.classes == class_id
        nearest = np.abs(ours.boxes[same] - box).max(axis=1)
        assert nearest.min() <= 1.0
        assert abs(ours.scores[same][nearest.argmin()] - score) <= 0.01


@pytest.mark.long
def test_lower_precision_still_sees_coco128(pair: Pair, shared: Path) -> None:
    """In bf16 at least 95 % of the boxes that fp32 finds in COCO128 match at an overlap of 0.9."""
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16 arithmetic")
    images = sorted((shared / "data" / "coco128").rglob("*.jpg"))
    if not images:
        pytest.skip("coco128 is not in the folder that STEELYARD_SHARED names")
    found = detect_all(pair.release, images, backend="openvino", precision="bf16")
    hits = total = 0
    for image, ours in zip(images, found, strict=True):
        theirs = pair.predict(image)
        total += len(theirs)
        hits += int(match(theirs, ours, iou=0.9).sum())
    assert total > 500
    assert hits >= 0.95 * total


def test_the_comparison_can_fail(pair: Pair) -> None:
    """Boxes moved by a tenth of their size no longer match, so the figures above mean something."""
    from ultralytics import ASSETS  # noqa: PLC0415 - as above

    theirs = pair.predict(Path(ASSETS) / "bus.jpg")
    moved = theirs.boxes + 0.1 * (theirs.boxes[:, [2, 3, 2, 3]] - theirs.boxes[:, [0, 1, 0, 1]])
    assert np.diag(box_iou(theirs.boxes, moved)).max() < 0.9
