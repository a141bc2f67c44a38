"""The fake backend: exact, telling and strict."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.backends.backend import Plan
from models.engine.backends.fake import BOXES, FakeBackend
from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import BackendError, ReleaseRejectedError
from models.types import Detections, GoldenImage, Thresholds
from models.weights.golden import check_sight

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engine.backends.backend import Session
    from models.types import Release

BATCH = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)


@pytest.mark.parametrize("head", ["end2end", "raw"])
def test_it_recalls_what_golden_images_expect(
    make_release: Callable[..., Release], picture: Callable[..., bytes], head: str
) -> None:
    """So it passes the sight test, and only there; blind it recalls nothing."""
    boxes = np.array([[3, 5, 40, 45], [10, 20, 90, 95]], np.float32)
    expected = Detections(boxes, np.array([0.9, 0.6], np.float32), np.array([2, 0], np.int32))
    release = make_release(head=head, golden=(GoldenImage("one", picture(96, 128), expected),))
    backend = FakeBackend(recalls=True)
    session = backend.load(release)

    def look(data: bytes, by: Session = session) -> Detections:
        tensor, placement = letterbox(decode(data), release.contract)
        return postprocess(by.infer(tensor[None], 0)[0], placement, release.contract, Thresholds())

    assert check_sight(release, look).matched == 2
    assert look(picture(96, 128)).classes.tolist() == [2, 0]
    assert len(look(picture(96, 128, 1))) == BOXES
    assert len(look(picture(96, 128), FakeBackend().load(release))) == BOXES
    backend.blind = True
    assert len(look(picture(96, 128))) == 0


@pytest.mark.parametrize("head", ["end2end", "raw"])
def test_an_answer_depends_on_pixels_and_digest_alone(make_release: Callable[..., Release], head: str) -> None:
    """Company changes nothing; another release does."""
    backend = FakeBackend()
    session = backend.load(make_release("a", head=head))
    together = session.infer(BATCH, 0)
    assert together.shape == ((3, BOXES, 6) if head == "end2end" else (3, 7, BOXES))
    assert together.dtype == np.float32
    for index in range(3):
        assert np.array_equal(session.infer(BATCH[index : index + 1], 0)[0], together[index])
    assert not np.array_equal(backend.load(make_release("b", head=head)).infer(BATCH, 0), together)


def test_boxes_lie_inside_and_score_high(make_release: Callable[..., Release]) -> None:
    """Every box is a proper one, seen for certain."""
    output = FakeBackend().load(make_release()).infer(BATCH, 0)
    assert (output[..., 2:4] > output[..., :2]).all()
    assert (output[..., :4] >= 0).all()
    assert (output[..., 2] <= 64).all()
    assert (output[..., 4] >= 0.5).all()
    assert set(output[..., 5].ravel()) <= {0, 1, 2}


def test_switches(make_release: Callable[..., Release]) -> None:
    """It can go blind, say NaN, fail, refuse to load, and take its time."""
    slept: list[float] = []
    backend = FakeBackend(0.25, sleep=slept.append)
    session = backend.load(make_release())
    backend.blind = True
    assert (session.infer(BATCH, 0)[..., 4] == 0).all()
    backend.finite = False
    assert np.isnan(session.infer(BATCH, 0)).all()
    backend.infer_error = BackendError("broken")
    with pytest.raises(BackendError, match="broken"):
        session.infer(BATCH, 0)
    backend.load_error = ReleaseRejectedError("no", step="load")
    with pytest.raises(ReleaseRejectedError):
        backend.load(make_release())
    assert slept.count(0.25) == 3


def test_misuse_is_noticed(make_release: Callable[..., Release]) -> None:
    """Calls after close and two calls on one lane are bugs that it reports."""
    inside, leave = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        if seconds:
            inside.set()
            leave.wait(10)

    session = FakeBackend(1.0, plan=Plan(2, 1), sleep=wait).load(make_release())
    thread = threading.Thread(target=session.infer, args=(BATCH[:1], 1))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(BackendError, match="two calls on lane 1"):
        session.infer(BATCH[:1], 1)
    leave.set()
    thread.join(10)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.infer(BATCH[:1], 0)
