"""The Registry port, asked of both its implementations: MLflow on SQLite and the fake must agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from models.errors import ReleaseRejectedError, UnknownModelError, UnknownVersionError
from models.rollout.order import PLAIN, Order
from models.weights.fake_registry import FakeRegistry
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, READY, SOURCE_TAG, Evaluation

if TYPE_CHECKING:
    from pathlib import Path

    from models.weights.registry import Registry, VersionInfo


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    """Return one MLflow registry for all tests: creating its tables takes seconds."""
    return MlflowRegistry(f"sqlite:///{tmp_path_factory.mktemp('home')}/registry/mlflow.db")


@pytest.fixture(params=["fake", "mlflow"])
def registry(request: pytest.FixtureRequest, mlflow: MlflowRegistry) -> Registry:
    """Return each implementation in turn."""
    return FakeRegistry() if request.param == "fake" else mlflow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two files."""
    place = tmp_path / "release"
    (place / "golden").mkdir(parents=True)
    (place / "manifest.json").write_bytes(b"{}")
    (place / "golden" / "a.jpg").write_bytes(b"jpg")
    return place


def _create(registry: Registry, folder: Path, model: str) -> VersionInfo:
    tags = {DIGEST_TAG: "ab" * 32, SOURCE_TAG: "cd" * 32, PROMOTABLE_TAG: "true"}
    return registry.create_version(model, folder, tags=tags, metrics={"mAP50-95(B)": 0.25})


def test_a_version_keeps_what_it_was_given(registry: Registry, folder: Path) -> None:
    """Tags, metrics, the ready state; numbers are strings and count from one."""
    info = _create(registry, folder, "keeps")
    assert (info.model, info.version, info.state, info.promotable) == ("keeps", "1", READY, "true")
    assert (info.digest, info.source_sha256, info.metrics) == ("ab" * 32, "cd" * 32, {"mAP50-95(B)": 0.25})
    assert info.created.endswith("+00:00")
    assert registry.version("keeps", "1") == info
    assert "keeps" in registry.models()


def test_versions_come_oldest_first(registry: Registry, folder: Path) -> None:
    """Beyond nine, where text would sort otherwise."""
    for _ in range(11):
        _create(registry, folder, "many")
    assert [info.version for info in registry.versions("many")] == [str(number) for number in range(1, 12)]


def test_files_come_back_as_they_were(registry: Registry, folder: Path, tmp_path: Path) -> None:
    """Folders included, and nothing else."""
    _create(registry, folder, "files")
    destination = tmp_path / "fetched"
    destination.mkdir()
    registry.fetch("files", "1", destination)
    found = {
        path.relative_to(destination).as_posix(): path.read_bytes() for path in destination.rglob("*") if path.is_file()
    }
    assert found == {"manifest.json": b"{}", "golden/a.jpg": b"jpg"}


def test_promoting_moves_the_alias_and_the_id(registry: Registry, folder: Path) -> None:
    """Desired is what the latest promote said; the alias shows in the list."""
    for _ in range(2):
        _create(registry, folder, "wanted")
    assert registry.desired("wanted") is None
    registry.promote("wanted", "1", promotion="p1", reason="test")
    second = registry.promote("wanted", "2", promotion="p2", reason="test")
    assert registry.desired("wanted") == second
    assert (second.version, second.digest, second.state, second.promotion) == ("2", "ab" * 32, READY, "p2")
    assert [info.aliases for info in registry.versions("wanted")] == [(), ("production",)]
    assert registry.promote("wanted", "2", promotion="p3", reason="again").promotion == "p3"
    desired = registry.desired("wanted")
    assert desired is not None
    assert desired.promotion == "p3"


def test_what_is_unknown_is_named_as_such(registry: Registry, folder: Path, tmp_path: Path) -> None:
    """Unknown models and versions are two errors; a model that nobody registered has nothing desired."""
    _create(registry, folder, "known")
    assert registry.desired("unknown") is None
    for call in (registry.versions, lambda model: registry.version(model, "1")):
        with pytest.raises(UnknownModelError):
            call("unknown")
    for version in ("9", "latest", "", "1.0", "-1"):
        with pytest.raises(UnknownVersionError):
            registry.version("known", version)
        with pytest.raises(UnknownVersionError):
            registry.promote("known", version, promotion="p", reason="test")
        with pytest.raises(UnknownVersionError):
            registry.fetch("known", version, tmp_path)


def test_recording_what_serves_changes_nothing_desired(registry: Registry, folder: Path) -> None:
    """It is for people and audits."""
    _create(registry, folder, "served")
    registry.record_serving("served", generation=3, version="1", digest="ab" * 32)
    assert registry.desired("served") is None


def test_a_deleted_version_is_gone_for_good(registry: Registry, folder: Path, tmp_path: Path) -> None:
    """With its files, and its number is never given again: two contents must not share a name."""
    for _ in range(3):
        _create(registry, folder, "shrinks")
    registry.delete_version("shrinks", "3")
    registry.delete_version("shrinks", "1")
    assert [info.version for info in registry.versions("shrinks")] == ["2"]
    for call in (
        lambda: registry.version("shrinks", "3"),
        lambda: registry.delete_version("shrinks", "3"),
        lambda: registry.fetch("shrinks", "3", tmp_path),
        lambda: registry.promote("shrinks", "3", promotion="p", reason="test"),
    ):
        with pytest.raises(UnknownVersionError):
            call()
    assert _create(registry, folder, "shrinks").version == "4"


def test_a_version_with_an_alias_is_not_deleted(registry: Registry, folder: Path) -> None:
    """The last fence: whoever asks, and however old his list is."""
    _create(registry, folder, "aliased")
    registry.promote("aliased", "1", promotion="p1", reason="test")
    with pytest.raises(ReleaseRejectedError, match="carries the alias production") as refused:
        registry.delete_version("aliased", "1")
    assert refused.value.step == "delete"
    assert registry.desired("aliased") is not None


def test_what_was_recorded_as_serving_can_be_read(registry: Registry, folder: Path) -> None:
    """Of a model that no fleet has served, there is nothing."""
    _create(registry, folder, "recorded")
    assert registry.recorded_serving("recorded") is None
    registry.record_serving("recorded", generation=3, version="1", digest="ab" * 32)
    assert registry.recorded_serving("recorded") == "1"


def test_an_order_belongs_to_its_promotion(registry: Registry, folder: Path) -> None:
    """The next promotion asks for nothing special unless it says so."""
    for _ in range(2):
        _create(registry, folder, "ordered")
    order = Order(allow_contract_change=True, force="hot fix", shadow_s=600.0, canary=(0.05, 0.25), step_s=90.0)
    first = registry.promote("ordered", "1", promotion="p1", reason="test", order=order)
    assert first.order == order
    assert registry.desired("ordered") == first
    registry.promote("ordered", "2", promotion="p2", reason="test")
    second = registry.desired("ordered")
    assert second is not None
    assert second.order == PLAIN


def test_evaluations_are_kept_one_a_data_set(registry: Registry, folder: Path) -> None:
    """A later one on the same data takes the earlier one's place; the rest of the version stays as it was."""
    for _ in range(2):
        _create(registry, folder, "judged")
    before = registry.version("judged", "1")
    assert registry.evaluations("judged", "1") == ()
    a = Evaluation("aa" * 32, "scenes/data.yaml", "ab" * 32, 0.51234567890123, 0.75, 240, 900, "test 1", "2026-01-01")
    b = replace(a, data="bb" * 32, created="2026-01-02")
    again = replace(a, map50_95=0.6, created="2026-01-03")
    for evaluation in (b, a):
        registry.record_evaluation("judged", "1", evaluation)
    assert registry.evaluations("judged", "1") == (a, b)
    registry.record_evaluation("judged", "1", again)
    assert registry.evaluations("judged", "1") == (b, again)
    assert registry.evaluations("judged", "2") == ()
    assert registry.version("judged", "1") == before
    with pytest.raises(UnknownVersionError):
        registry.record_evaluation("judged", "9", a)
    with pytest.raises(UnknownVersionError):
        registry.evaluations("judged", "9")
    with pytest.raises(UnknownModelError):
        registry.evaluations("unknown-to-all", "1")
