"""Evaluations of the demo versions on rendered trays, beside Ultralytics' own validation of their weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models import demo
from models.demo.dataset import write_dataset
from models.rollout.gates import quality_gate
from models.rollout.order import PLAIN
from models.weights.evaluation import evaluate
from models.weights.fake_registry import FakeRegistry
from models.weights.keys import KeyFolder
from models.weights.register import register
from models.weights.trust import SignatureRule

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loadtest"))

from ultralytics_val import Ultralytics

if TYPE_CHECKING:
    from models.weights.registry import Evaluation

pytestmark = pytest.mark.long

RULE = SignatureRule(KeyFolder(Path("nowhere")), required=False)
SCENES = 40
ALLOWED = 0.003
"""mAP50-95 (0 to 1) between the served graph and Ultralytics on the tensors and NMS of ``predict``."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data.yaml of rendered held-out scenes."""
    return write_dataset(tmp_path_factory.mktemp("scenes"), scenes=1, seed=0, held_out=SCENES)


@pytest.fixture(scope="module")
def registry(data: Path) -> FakeRegistry:
    """Return a registry with both demo versions, each evaluated."""
    found = FakeRegistry()
    for version in (1, 2):
        info = register(found, demo.weights_path(version), model=demo.MODEL_NAME).info
        evaluate(found, demo.MODEL_NAME, info.version, data, rule=RULE)
    return found


def of(registry: FakeRegistry, version: str) -> tuple[Evaluation, ...]:
    """Return the evaluations of a demo version."""
    return registry.evaluations(demo.MODEL_NAME, version)


@pytest.mark.parametrize("version", [1, 2])
def test_the_score_is_that_of_ultralytics(registry: FakeRegistry, data: Path, version: int) -> None:
    """The release's graph, shown every image as the service would, scores as the checkpoint does in Ultralytics."""
    (found,) = of(registry, str(version))
    images = sorted((data.parent / "images" / "val").glob("*.jpg"))
    theirs = Ultralytics(demo.weights_path(version), _flat(images, data.parent / "flat")).val(frozenset())
    assert found.images == len(images) == SCENES
    assert abs(found.map50_95 - theirs.map50_95 / 100) <= ALLOWED
    assert abs(found.map50 - theirs.map50 / 100) <= ALLOWED


def test_version_1_is_stopped_where_version_2_serves(registry: FakeRegistry) -> None:
    """Both were evaluated on the same images, and the gate sees the difference; the other way round it passes."""
    one, two = of(registry, "1"), of(registry, "2")
    assert one[0].data == two[0].data
    gate = {"model": demo.MODEL_NAME, "tolerance": 0.003}
    assert not quality_gate(two, one, PLAIN, version="1", **gate).passed  # type: ignore[arg-type]
    assert quality_gate(one, two, PLAIN, version="2", **gate).passed  # type: ignore[arg-type]


def _flat(images: list[Path], folder: Path) -> list[Path]:
    """Link images and labels into one folder each, as that validation wants them."""
    links = []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for image in images:
        label = image.parents[2] / "labels" / "val" / f"{image.stem}.txt"
        for link, target in (
            (folder / "images" / image.name, image),
            (folder / "labels" / label.name, label),
        ):
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        links.append(folder / "images" / image.name)
    return links
