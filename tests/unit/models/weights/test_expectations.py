"""What the reference sees becomes an expectation, and a graph that sees otherwise is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from models.engine.decode import decode
from models.errors import ConversionError
from models.types import Contract, Detections
from models.weights import expectations
from models.weights.expectations import check_parity, choose_golden, differences, file_name, golden_entry, look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

CONTRACT = Contract("detect", ("a", "b"), 32, 64, "end2end")


def network(*rows: tuple[float, ...]) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Return an end-to-end network that sees the same rows in every image."""

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.repeat(np.array([rows], np.float32), len(batch), axis=0)

    return run


SEEN = (10.0, 10.0, 30.0, 30.0, 0.9, 0.0)


@pytest.fixture
def pictures(tmp_path: Path, picture: bytes) -> list[Path]:
    """Return the paths of a text file and of one picture of 64 x 48."""
    paths = [tmp_path / "00-notes.jpg", tmp_path / "01-bus.jpg"]
    paths[0].write_bytes(b"no picture")
    paths[1].write_bytes(picture)
    return paths


def test_only_decodable_pictures_are_shown(pictures: list[Path]) -> None:
    """The scene carries the image's shape and boxes in its pixels."""
    (scene,) = look(pictures, network(SEEN), CONTRACT)
    assert (scene.name, scene.shape) == ("bus.jpg", (48, 64))
    # 64 x 48 pads its height by 8 above and below.
    assert scene.seen.boxes.tolist() == [[10, 2, 30, 22]]
    with pytest.raises(ConversionError, match="None of the golden pictures"):
        look(pictures[:1], network(SEEN), CONTRACT)


def test_a_reference_that_answers_nan_is_refused(pictures: list[Path]) -> None:
    """Finite weights can still overflow."""
    with pytest.raises(ConversionError, match="NaN"):
        look(pictures, network((*SEEN[:4], float("nan"), 0)), CONTRACT)


def test_a_graph_that_agrees_passes(pictures: list[Path]) -> None:
    """Small differences are recorded, not refused."""
    scenes = look(pictures, network(SEEN), CONTRACT)
    parity = check_parity(scenes, network((10.5, *SEEN[1:4], 0.905, 0)), CONTRACT, batches=True)
    assert (parity.images, parity.boxes, parity.max_pixel) == (1, 1, 0.5)
    assert parity.max_score == pytest.approx(0.005, abs=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        (12.0, 10.0, 30.0, 30.0, 0.9, 0.0),
        (10.0, 10.0, 30.0, 30.0, 0.8, 0.0),
        (10.0, 10.0, 30.0, 30.0, 0.9, 1.0),
        (10.0, 10.0, 30.0, 30.0, 0.0, 0.0),
    ],
)
def test_a_graph_that_differs_is_refused(pictures: list[Path], row: tuple[float, ...]) -> None:
    """Two pixels, a tenth of a score, another class, nothing at all."""
    scenes = look(pictures, network(SEEN), CONTRACT)
    with pytest.raises(ConversionError, match="differs from its source"):
        check_parity(scenes, network(row), CONTRACT, batches=False)


def test_a_blind_graph_of_a_blind_reference_must_agree_in_scores(pictures: list[Path]) -> None:
    """No box to compare, so the scores below every threshold are."""
    scenes = look(pictures, network((0, 0, 1, 1, 0.01, 0)), CONTRACT)
    assert check_parity(scenes, network((0, 0, 1, 1, 0.01, 0)), CONTRACT, batches=False).boxes == 0
    with pytest.raises(ConversionError, match="differs"):
        check_parity(scenes, network((0, 0, 1, 1, 0.04, 0)), CONTRACT, batches=False)


def test_an_image_must_look_the_same_in_company(pictures: list[Path]) -> None:
    """A graph whose batch leaks between images is refused."""

    def leaking(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        output = network(SEEN)(batch)
        output[1:, :, 0] += 5
        return output

    scenes = look(pictures, network(SEEN), CONTRACT)
    assert check_parity(scenes, leaking, CONTRACT, batches=False).max_pixel == 0
    with pytest.raises(ConversionError, match=r"5\.00 px"):
        check_parity(scenes, leaking, CONTRACT, batches=True)


def test_each_box_is_compared_with_its_own_twin(boxes: Callable[..., Detections]) -> None:
    """Equal boxes of equal class may come in any order; a missing class is an infinite difference."""
    expected = boxes((0, 0, 10, 10, 0.9, 0), (50, 0, 60, 10, 0.8, 0))
    found = boxes((50, 0, 60.25, 10, 0.8, 0), (0, 0, 10, 10, 0.9, 0))
    assert differences(expected, found) == (0.25, 0.0)
    assert differences(expected, Detections.empty()) == (float("inf"), float("inf"))
    assert differences(boxes((0, 0, 9, 9, 0.2, 0)), Detections.empty()) == (0.0, 0.0)


def test_the_lower_end_of_a_full_answer_is_left_out(boxes: Callable[..., Detections]) -> None:
    """Which of two equal boxes is the 300th is a matter of rounding."""
    rows = [(i, 0, i + 10, 10, 0.9 - i / 1000, 0) for i in range(300)]
    expected = boxes(*rows)
    assert differences(expected, boxes(*rows[:290])) == (0.0, 0.0)
    assert differences(expected, boxes(*rows[:200]))[0] > 1


def _scene(pictures: list[Path], *rows: tuple[float, ...]) -> Any:
    return look(pictures, network(*rows), CONTRACT)[0]


def test_golden_scenes_are_the_surest(pictures: list[Path]) -> None:
    """At most four, each with a box of a half or more, the best first."""
    scores = [0.6, 0.49, 0.95, 0.7, 0.8, 0.5]
    scenes = [_scene(pictures, (*SEEN[:4], score, 0)) for score in scores]
    chosen = [golden_entry(scene, "f")["scores"][0] for scene in choose_golden(scenes)]
    assert chosen == [0.95, 0.8, 0.7, 0.6]
    assert choose_golden(scenes[1:2]) == []


def test_an_entry_leaves_out_the_unsure_and_the_clipped(pictures: list[Path]) -> None:
    """Boxes below 0.25, and those that the border leaves nothing of."""
    scene = _scene(pictures, SEEN, (0, 0, 9, 9, 0.2, 1), (5, 0, 15, 8, 0.9, 1))
    entry = golden_entry(scene, "golden/x.jpg")
    assert entry == {
        "file": "golden/x.jpg",
        "shape": [48, 64],
        "boxes": [[10.0, 2.0, 30.0, 22.0]],
        "scores": [0.9],
        "classes": [0],
    }


def test_file_names_are_safe_and_tell_the_format(pictures: list[Path]) -> None:
    """Whatever the picture was called."""
    scene = _scene(pictures, SEEN)
    assert file_name(0, scene) == "0-bus.jpg"
    object.__setattr__(scene, "name", "../ü x/.png")
    object.__setattr__(scene, "data", b"\x89PNG")
    assert file_name(1, scene) == "1-x.png"


def test_a_large_picture_is_stored_smaller(tmp_path: Path) -> None:
    """Golden images travel with every release."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    path = tmp_path / "00-big.png"
    path.write_bytes(cv2.imencode(".png", noise)[1].tobytes())
    assert path.stat().st_size > expectations.REENCODE_ABOVE
    (scene,) = look([path], network(SEEN), CONTRACT)
    assert scene.shape == (960, 1280)
    assert decode(scene.data).shape == (960, 1280, 3)
    assert len(scene.data) < path.stat().st_size / 3
