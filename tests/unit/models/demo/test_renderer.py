"""The renderer of labelled checkout trays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.demo import renderer
from models.demo.brush import Sheet
from models.demo.dataset import label_lines, write_dataset
from models.demo.products import PRODUCTS, Product
from models.demo.renderer import CLASS_NAMES, Tray, render_tray

if TYPE_CHECKING:
    from pathlib import Path

_SMALL = 96


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Tray, renderer._Scene]]:
    """Return forty trays beside the scenes that they were drawn from."""
    seen: list[renderer._Scene] = []
    labels = renderer._labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(renderer, "_labels", lambda scene: (seen.append(scene), labels(scene))[1])
        trays = [render_tray(seed, _SMALL) for seed in range(40)]
    return list(zip(trays, seen, strict=True))


def _assert_sound(tray: Tray, width: int, height: int) -> None:
    """Check types, shapes and that every box lies inside the image and has an area."""
    assert tray.image.shape == (height, width, 3)
    assert tray.image.dtype == np.uint8
    assert tray.boxes.shape == (tray.classes.size, 4)
    assert tray.boxes.dtype == np.float32
    assert tray.classes.dtype == np.int32
    assert (tray.boxes >= 0).all()
    assert (tray.boxes[:, 2:] <= (width, height)).all()
    assert (tray.boxes[:, 2:] > tray.boxes[:, :2]).all()
    assert ((tray.classes >= 0) & (tray.classes < len(CLASS_NAMES))).all()


def test_same_seed_same_tray() -> None:
    """Two renders of one seed are equal to the last bit."""
    first, second = render_tray(7, _SMALL), render_tray(7, _SMALL)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.classes, second.classes)


def test_other_seed_other_tray() -> None:
    """Two seeds give two pictures."""
    assert not np.array_equal(render_tray(1, _SMALL).image, render_tray(2, _SMALL).image)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(64, 160), height=st.integers(64, 160))
def test_any_seed_and_size_is_sound(seed: int, width: int, height: int) -> None:
    """Whatever seed and size are asked for, boxes lie inside the image and have an area."""
    _assert_sound(render_tray(seed, (width, height)), width, height)


def test_size_is_width_then_height() -> None:
    """A pair of sizes is read as width and height."""
    _assert_sound(render_tray(3, (128, 80)), 128, 80)


def test_too_small_is_refused() -> None:
    """A tray below 64 pixels is refused with its size in the message."""
    with pytest.raises(ValueError, match="32 x 90"):
        render_tray(0, (32, 90))


def test_every_class_appears(scenes: list[tuple[Tray, renderer._Scene]]) -> None:
    """Forty seeds show every product, and none dominates."""
    counts = np.zeros(len(CLASS_NAMES), dtype=int)
    for tray, _ in scenes:
        np.add.at(counts, tray.classes, 1)
    assert (counts > 0).all()
    assert counts.max() < 0.25 * counts.sum()


def test_boxes_are_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With black squares on a white counter, each box is exactly what a reader of the pixels would draw."""

    def white(_rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """An empty white scene."""
        return np.full((*shape, 3), 255, dtype=np.float32)

    def square(_rng: np.random.Generator) -> Sheet:
        """A flat black square."""
        sheet = Sheet(60, 60, (0, 0, 0), gloss=0)
        sheet.body(sheet.panel(10, 10, 50, 50), (0, 0, 0))
        return sheet

    def show(_rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
        """The scene as it is."""
        return np.round(scene).astype(np.uint8)

    black = Product("square", square, 0.3)
    monkeypatch.setattr(renderer, "PRODUCTS", (black,))
    monkeypatch.setattr(renderer, "counter_with_tray", white)
    monkeypatch.setattr(renderer, "photograph", show)
    monkeypatch.setattr(renderer, "_drop_shadow", lambda _scene, _patch: None)
    monkeypatch.setattr(renderer, "_scatter_clutter", lambda _rng, _scene: None)
    compared = 0
    for seed in range(20):
        tray = render_tray(seed, 160)
        dark = (tray.image[..., 0] < 128).astype(np.uint8)
        amount, _, stats, _ = cv2.connectedComponentsWithStats(dark)
        if amount - 1 != len(tray.boxes):
            continue  # squares that touch cannot be told apart by their pixels
        drawn = sorted((x, y, x + w, y + h) for x, y, w, h, _ in stats[1:].tolist())
        labelled = sorted(tuple(box) for box in tray.boxes.tolist())
        np.testing.assert_allclose(labelled, drawn, atol=1.0)
        compared += len(drawn)
    assert compared >= 10


def test_nothing_is_hidden_beyond_the_limit(scenes: list[tuple[Tray, renderer._Scene]]) -> None:
    """Every product laid still shows at least two fifths of itself, so none lies there unlabelled."""
    for tray, scene in scenes:
        assert tray.classes.size == len(scene.classes)
        for number, area in enumerate(scene.areas):
            assert np.count_nonzero(scene.owner == number) >= 0.4 * area


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: str(product.name))
def test_sprite_is_finite_and_fills_its_sheet(product: Product) -> None:
    """Every specimen of a product has finite maps and covers most of its sheet's long side."""
    for seed in range(12):
        sheet = product.draw(np.random.default_rng(seed))
        assert np.isfinite(sheet.albedo).all()
        assert np.isfinite(sheet.height).all()
        rows, columns = np.nonzero(sheet.cover > 0.5)
        assert max(np.ptp(rows), np.ptp(columns)) > 0.5 * max(sheet.shape)


def test_dataset_is_what_ultralytics_reads(tmp_path: Path) -> None:
    """Each picture has a label file of the same name, shares lie in 0-1, and train and val have no seed in common."""
    listing = write_dataset(tmp_path, scenes=3, seed=1, size=64, held_out=2)
    names = {}
    for split, amount in (("train", 3), ("val", 2)):
        names[split] = {path.stem for path in (tmp_path / "images" / split).glob("*.jpg")}
        assert names[split] == {path.stem for path in (tmp_path / "labels" / split).glob("*.txt")}
        assert len(names[split]) == amount
        for path in (tmp_path / "labels" / split).glob("*.txt"):
            values = np.loadtxt(path, ndmin=2)
            assert ((values[:, 1:] >= 0) & (values[:, 1:] <= 1)).all()
    assert not names["train"] & names["val"]
    assert "train: images/train" in listing.read_text(encoding="utf-8")


def test_held_out_scenes_do_not_depend_on_the_training_set(tmp_path: Path) -> None:
    """Two data sets of different seeds hold out the same pictures, so their figures can be compared."""
    pictures = []
    for seed in (1, 2):
        write_dataset(tmp_path / str(seed), scenes=1, seed=seed, size=64, held_out=2)
        folder = tmp_path / str(seed) / "images" / "val"
        pictures.append([path.read_bytes() for path in sorted(folder.glob("*.jpg"))])
    assert pictures[0] == pictures[1]


def test_unknown_set_is_refused(tmp_path: Path) -> None:
    """A training set whose seeds would run into the held-out ones is refused."""
    with pytest.raises(ValueError, match="sets 0-99"):
        write_dataset(tmp_path, scenes=1, seed=100)


def test_labels_restore_the_boxes() -> None:
    """Written shares give the boxes back within a hundredth of a pixel."""
    tray = render_tray(5, (200, 120))
    rows = np.asarray([[float(value) for value in line.split()] for line in label_lines(tray).splitlines()])
    centre, extent = rows[:, 1:3] * (200, 120), rows[:, 3:] * (200, 120)
    np.testing.assert_allclose(np.hstack([centre - extent / 2, centre + extent / 2]), tray.boxes, atol=0.01)
    np.testing.assert_array_equal(rows[:, 0], tray.classes)
