"""An image's answer depends on nothing but the image: not on its company, hardly on which shapes are warm.

On real COCO weights and photographs, through every runtime that a CPU serves with. Equal to the last bit alone and in
any batch, on any lane; within half a pixel of the tensor and 0.01 of score between cold and warm shapes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from coco import VERSIONS, checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.engine.backends.backend import Plan
from models.engine.backends.select import select_backend
from models.engine.decode import decode
from models.engine.engine import Engine
from models.engine.preprocess import letterbox
from models.types import DetectOptions, RequestContext
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from models.engine.backends.backend import Backend, Session, Shape
    from models.types import Detections, Release
    from models.weights.fake_registry import FakeRegistry

pytestmark = pytest.mark.shared

MOVED_PIXELS, MOVED_SCORE = 0.5, 0.01
"""How far warming a shape may move a box and a score."""
BATCH = 3
PHOTOGRAPHS = 24
RUNTIMES = [("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32"), ("torch", "fp32")]


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded release, tensors of two shapes, and what each of them is answered alone while nothing is warm."""

    session: Session
    tensors: dict[Shape, NDArray[np.uint8]]
    alone: dict[Shape, NDArray[np.float32]]
    raw: bool


@pytest.fixture(scope="module", params=list(VERSIONS))
def release(
    request: pytest.FixtureRequest, shared: Path, coco: FakeRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """Open the registered weights of each checkpoint."""
    checkpoint(shared, request.param)
    version, folder = VERSIONS[request.param], tmp_path_factory.mktemp(request.param)
    coco.fetch("coco", version, folder)
    digest = coco.version("coco", version).digest
    return open_release("coco", version, read_folder(folder), expect_digest=digest)


@pytest.fixture(scope="module", params=RUNTIMES, ids=" ".join)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Return each runtime on two threads."""
    name, precision = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    backend = select_backend(name, precision=precision, threads=2, gpu=False)
    if precision == "bf16" and backend.precision != "bf16":
        pytest.skip("this processor has no bf16 arithmetic")
    return backend


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[bytes]:
    """Return some photographs of COCO128."""
    paths = sorted((shared / "data" / "coco128").rglob("*.jpg"))[:PHOTOGRAPHS]
    if not paths:
        pytest.skip("the folder that STEELYARD_SHARED names holds no coco128")
    return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def subject(release: Release, backend: Backend, photographs: list[bytes]) -> Subject:
    """Load the release and answer images of the two commonest shapes one by one."""
    groups: dict[Shape, list[NDArray[np.uint8]]] = defaultdict(list)
    for photograph in photographs:
        tensor, _ = letterbox(decode(photograph), release.contract)
        groups[tensor.shape[0], tensor.shape[1]].append(tensor)
    commonest = sorted(groups, key=lambda shape: len(groups[shape]))[-2:]
    tensors = {shape: np.stack(groups[shape][:BATCH]) for shape in commonest}
    session = backend.load(release, Plan(2, BATCH))
    alone = {shape: np.concatenate([session.infer(one[None], 0) for one in each]) for shape, each in tensors.items()}
    return Subject(session, tensors, alone, release.contract.head == "raw")


choices = {
    "which": st.integers(0, 1),
    "images": st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=BATCH),
    "lane": st.integers(0, 1),
}
few = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


@few
@given(**choices)
def test_company_changes_no_bit(subject: Subject, which: int, images: list[int], lane: int) -> None:
    """Alone and in any batch, whatever its place in it and its lane, an image gets the same answer."""
    shape = list(subject.tensors)[which]
    images = [image % len(subject.tensors[shape]) for image in images]
    together = subject.session.infer(subject.tensors[shape][images], lane)
    assert np.array_equal(together, subject.alone[shape][images])


def test_warmth_moves_nothing_that_counts(subject: Subject) -> None:
    """Warm, for a lone call, and cold again, answers stay within the promise, and company still changes no bit."""
    shape = next(iter(subject.tensors))
    tensors, cold, session = subject.tensors[shape][:2], subject.alone[shape][:2], subject.session
    steps = [(session.warm, False), (session.warm, True), (session.forget, False), (session.forget, True)]
    for change, alone in steps:
        change(shape, alone=alone)
        one_by_one = np.concatenate([session.infer(one[None], 0, alone=alone) for one in tensors])
        moved = np.abs(one_by_one - cold)
        boxes, scores = (moved[:, :4], moved[:, 4:]) if subject.raw else (moved[..., :4], moved[..., 4])
        assert boxes.max() <= MOVED_PIXELS
        assert scores.max() <= MOVED_SCORE
        assert np.array_equal(session.infer(tensors, 1), one_by_one)


@pytest.mark.parametrize("release", ["yolo26n"], indirect=True)
def test_the_engine_answers_alike_however_it_is_asked(
    release: Release, backend: Backend, photographs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file's bytes on: one by one, and mixed all at once, every photograph is answered alike."""
    pictures, plan = photographs[:6], backend.plans()[0]
    monkeypatch.setattr(backend, "plans", lambda: (plan,))  # which one is fastest is not the question here

    async def scene() -> tuple[list[Detections], list[Detections]]:
        async with Engine(backend) as engine:
            await engine.prepare(release)
            engine.flip(release.digest, 1)
            context = RequestContext("equal", time.monotonic() + 120.0)

            async def ask(picture: bytes) -> Detections:
                return (await engine.detect(picture, DetectOptions(conf=0.05), context)).detections

            single = [await ask(picture) for picture in pictures]
            return single, await asyncio.gather(*(ask(picture) for picture in pictures * 2))

    single, mixed = asyncio.run(scene())
    assert sum(len(found) for found in single) > len(pictures)
    for index, found in enumerate(mixed):
        expected = single[index % len(pictures)]
        assert np.array_equal(found.boxes, expected.boxes)
        assert np.array_equal(found.scores, expected.scores)
        assert np.array_equal(found.classes, expected.classes)
