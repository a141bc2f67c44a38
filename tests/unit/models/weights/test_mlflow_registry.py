"""What is MLflow's own: the order of writes, hand-made changes, dead servers, silence."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import RegistryError, UnknownVersionError
from models.rollout.order import PLAIN, Order
from models.weights.mlflow_registry import MlflowRegistry, open_registry
from models.weights.registry import DIGEST_TAG, EVALUATION_TAG, PROMOTION_TAG, SERVING_TAG, STATE_TAG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one home folder for all tests: creating the tables takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def registry(home: Path) -> MlflowRegistry:
    """Return a registry on SQLite in the home folder."""
    return open_registry(f"sqlite:///{home}/registry/mlflow.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one file."""
    place = tmp_path / "release"
    place.mkdir()
    (place / "model.onnx").write_bytes(b"graph")
    return place


def _client(registry: MlflowRegistry) -> Any:
    return registry._connection.connect()


def test_artifacts_stay_in_the_home_folder(
    registry: MlflowRegistry, home: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's default would be ./mlruns of whoever calls."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    registry.create_version("placed", folder, tags={DIGEST_TAG: "a"}, metrics={})
    assert os.listdir(elsewhere) == []  # noqa: PTH208 - a plain list compares best
    assert [path.read_bytes() for path in (home / "registry" / "artifacts").rglob("model.onnx")] == [b"graph"]


def test_the_ready_tag_is_written_last(registry: MlflowRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash just before it leaves a version that does not exist for the fleet."""

    def crash(*_: object) -> None:
        raise ConnectionError

    client = _client(registry)
    with monkeypatch.context() as patch:
        patch.setattr(client, "set_model_version_tag", crash)
        with pytest.raises(RegistryError):
            registry.create_version("crashed", folder, tags={DIGEST_TAG: "a"}, metrics={})
    (info,) = registry.versions("crashed")
    assert (info.state, info.digest) == ("", "a")
    client.set_model_version_tag("crashed", "1", STATE_TAG, "ready")
    assert registry.version("crashed", "1").state == "ready"


@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_while_signing_leaves_no_ready_version(
    registry: MlflowRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Before the signature and between it and the ready tag: for the fleet the version does not exist."""
    client, model = _client(registry), f"half-{writes}"
    original, done = client.set_model_version_tag, []

    def crash(*arguments: object) -> None:
        if len(done) == writes:
            raise ConnectionError
        done.append(arguments)
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_model_version_tag", crash)
        with pytest.raises(RegistryError):
            registry.create_version(
                model, folder, tags={DIGEST_TAG: "a"}, metrics={}, sign=lambda number: f"of {number}"
            )
    (info,) = registry.versions(model)
    assert (info.state, info.signature) == ("", "of 1" if writes else "")


def test_a_signature_is_made_for_the_number_that_the_version_has(registry: MlflowRegistry, folder: Path) -> None:
    """It is there before the version is ready, is read with the alias, and can be replaced."""
    for number in ("1", "2"):
        info = registry.create_version(
            "signed", folder, tags={DIGEST_TAG: "a"}, metrics={}, sign=lambda number: f"of {number}"
        )
        assert (info.version, info.signature, info.state) == (number, f"of {number}", "ready")
    registry.sign_version("signed", "1", "again")
    assert [info.signature for info in registry.versions("signed")] == ["again", "of 2"]
    assert registry.promote("signed", "1", promotion="p", reason="test").signature == "again"
    desired = registry.desired("signed")
    assert desired is not None
    assert desired.signature == "again"
    with pytest.raises(UnknownVersionError):
        registry.sign_version("signed", "9", "x")


def test_a_reader_between_the_two_writes_of_a_promotion_sees_the_new_version(
    registry: MlflowRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its new id and with its order, for a webhook fires in between; never the old version under the new id."""
    for digest in "ab":
        registry.create_version("order", folder, tags={DIGEST_TAG: digest}, metrics={})
    registry.promote("order", "1", promotion="p1", reason="test")
    client, seen = _client(registry), []

    def watched(write: Callable[..., None]) -> Callable[..., None]:
        def look_then_write(*arguments: object) -> None:
            seen.append(registry.desired("order"))
            write(*arguments)

        return look_then_write

    for name in ("set_model_version_tag", "set_registered_model_alias", "set_registered_model_tag"):
        monkeypatch.setattr(client, name, watched(getattr(client, name)))
    order = Order(canary=(0.05,))
    registry.promote("order", "2", promotion="p2", reason="test", order=order)
    seen.append(registry.desired("order"))
    assert [(each.version, each.digest, each.promotion, each.order) for each in seen if each is not None] == [
        ("1", "a", "p1", PLAIN),
        ("1", "a", "p1", PLAIN),
        ("2", "b", "p2", order),
        ("2", "b", "p2", order),
    ]


def test_an_alias_moved_by_hand_is_a_promotion(registry: MlflowRegistry, folder: Path) -> None:
    """Whoever moves it in MLflow's own pages wants that version."""
    for digest in "ab":
        registry.create_version("hand", folder, tags={DIGEST_TAG: digest}, metrics={})
    registry.promote("hand", "2", promotion="p1", reason="test")
    _client(registry).set_registered_model_alias("hand", "production", "1")
    desired = registry.desired("hand")
    assert desired is not None
    assert (desired.version, desired.promotion) == ("1", "alias:1")


@pytest.mark.parametrize("tag", ["", "p1", "[]", '{"id": "x"}', '{"version": "1"}'])
def test_a_promotion_tag_that_makes_no_sense_is_like_none(registry: MlflowRegistry, folder: Path, tag: str) -> None:
    """Tags can be edited by anybody."""
    name = f"odd{abs(hash(tag))}"
    registry.create_version(name, folder, tags={DIGEST_TAG: "a"}, metrics={})
    registry.promote(name, "1", promotion="p1", reason="test")
    _client(registry).set_registered_model_tag(name, PROMOTION_TAG, tag)
    desired = registry.desired(name)
    assert desired is not None
    assert desired.promotion == "p1", "the version's own note still stands"
    _client(registry).set_model_version_tag(name, "1", PROMOTION_TAG, tag)
    desired = registry.desired(name)
    assert desired is not None
    assert desired.promotion == "alias:1"


@pytest.mark.parametrize("order", [None, "x", [], {"force": 1}, {"unknown": True}, {"canary": [2]}])
def test_an_order_that_makes_no_sense_is_like_none(registry: MlflowRegistry, folder: Path, order: object) -> None:
    """The promotion itself stands; one without the key was written before there were orders."""
    name = f"disordered{abs(hash(str(order)))}"
    registry.create_version(name, folder, tags={DIGEST_TAG: "a"}, metrics={})
    registry.promote(name, "1", promotion="p1", reason="test", order=Order(force="why"))
    note = {"id": "p2", "version": "1", "at": "9999-01-01T00:00:00.000+00:00"} | (
        {} if order is None else {"order": order}
    )
    _client(registry).set_registered_model_tag(name, PROMOTION_TAG, json.dumps(note))
    desired = registry.desired(name)
    assert desired is not None
    assert (desired.promotion, desired.order) == ("p2", PLAIN)


def test_an_order_is_not_that_of_an_alias_moved_by_hand(registry: MlflowRegistry, folder: Path) -> None:
    """It was given for another version."""
    for digest in "ab":
        registry.create_version("handmade", folder, tags={DIGEST_TAG: digest}, metrics={})
    registry.promote("handmade", "2", promotion="p1", reason="test", order=Order(force="why"))
    _client(registry).set_registered_model_alias("handmade", "production", "1")
    desired = registry.desired("handmade")
    assert desired is not None
    assert (desired.promotion, desired.order) == ("alias:1", PLAIN)


@pytest.mark.parametrize("tag", ["", "[]", "{}", '{"map50_95": 2}', '{"data": "aa", "map50_95": "NaN"}', "[" * 3000])
def test_an_evaluation_that_makes_no_sense_is_left_out(registry: MlflowRegistry, folder: Path, tag: str) -> None:
    """Tags can be edited by anybody."""
    name = f"misjudged{abs(hash(tag))}"
    registry.create_version(name, folder, tags={DIGEST_TAG: "a"}, metrics={})
    _client(registry).set_model_version_tag(name, "1", f"{EVALUATION_TAG}aa", tag)
    assert registry.evaluations(name, "1") == ()


def test_a_deleted_version_is_no_longer_desired(registry: MlflowRegistry, folder: Path) -> None:
    """MLflow removes the alias with it; the fleet keeps what it serves."""
    registry.create_version("gone", folder, tags={DIGEST_TAG: "a"}, metrics={})
    registry.promote("gone", "1", promotion="p1", reason="test")
    _client(registry).delete_model_version("gone", "1")
    assert registry.desired("gone") is None
    assert registry.versions("gone") == []


def test_what_serves_is_written_for_people(registry: MlflowRegistry, folder: Path) -> None:
    """Generation, version and digest as JSON in the model's tag."""
    registry.create_version("told", folder, tags={DIGEST_TAG: "a"}, metrics={})
    registry.record_serving("told", generation=7, version="1", digest="a")
    note = json.loads(_client(registry).get_registered_model("told").tags[SERVING_TAG])
    assert (note["generation"], note["version"], note["digest"]) == (7, "1", "a")


def test_lost_artifacts_are_a_registry_error(
    registry: MlflowRegistry, home: Path, folder: Path, tmp_path: Path
) -> None:
    """The database knows a version whose files somebody removed."""
    registry.create_version("lost", folder, tags={DIGEST_TAG: "a"}, metrics={})
    source = _client(registry).get_model_version("lost", "1").source
    (path,) = [path for path in (home / "registry" / "artifacts").rglob("weights") if str(path) in source]
    path.rename(path.with_name("moved"))
    destination = tmp_path / "fetched"
    destination.mkdir()
    with pytest.raises(RegistryError):
        registry.fetch("lost", "1", destination)
    assert list(destination.iterdir()) == []


def test_a_dead_server_fails_fast() -> None:
    """MLflow's own default is to block for four minutes."""
    started = time.monotonic()
    registry = MlflowRegistry("http://127.0.0.1:9")
    with pytest.raises(RegistryError, match="cannot be reached"):
        registry.desired("m")
    assert time.monotonic() - started < 20


def test_a_database_that_is_none_is_a_registry_error(tmp_path: Path) -> None:
    """A text file in its place."""
    (tmp_path / "mlflow.db").write_text("no database\n" * 100)
    with pytest.raises(RegistryError):
        open_registry(f"sqlite:///{tmp_path}/mlflow.db")


def test_nothing_is_printed(registry: MlflowRegistry, folder: Path, tmp_path: Path, capfd: Any) -> None:
    """MLflow would narrate each step on the terminal."""
    registry.create_version("quiet", folder, tags={DIGEST_TAG: "a"}, metrics={"x": 1.0})
    registry.promote("quiet", "1", promotion="p", reason="test")
    destination = tmp_path / "fetched"
    destination.mkdir()
    registry.fetch("quiet", "1", destination)
    registry.versions("quiet")
    assert capfd.readouterr() == ("", "")


def test_deleting_takes_the_files_and_the_run(registry: MlflowRegistry, home: Path, folder: Path) -> None:
    """Space is why somebody deletes."""
    (folder / "model.onnx").write_bytes(b"to be deleted")
    registry.create_version("freed", folder, tags={DIGEST_TAG: "a"}, metrics={})
    entry = _client(registry).get_model_version("freed", "1")
    registry.delete_version("freed", "1")
    stored = [path.read_bytes() for path in (home / "registry" / "artifacts").rglob("model.onnx")]
    assert b"to be deleted" not in stored
    assert _client(registry).get_run(entry.run_id).info.lifecycle_stage == "deleted"


def test_deleting_leaves_files_that_are_not_ours(registry: MlflowRegistry, folder: Path, tmp_path: Path) -> None:
    """A version made by hand may point at anything: a folder of somebody's, or another version's files."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    client = _client(registry)
    registry.create_version("hand", folder, tags={DIGEST_TAG: "a"}, metrics={})
    first = client.get_model_version("hand", "1")
    client.create_model_version("hand", source=first.source, run_id=first.run_id)
    client.create_model_version("hand", source=mine.as_uri(), run_id=first.run_id)
    client.create_model_version("hand", source=mine.as_uri())
    for version in ("4", "3", "2"):
        registry.delete_version("hand", version)
    assert (mine / "thesis.txt").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    registry.fetch("hand", "1", kept)
    assert (kept / "model.onnx").read_bytes() == b"graph"


def test_a_store_that_deletes_no_files_still_loses_the_version(
    registry: MlflowRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that nobody names are harmless; a version without its files would not be."""
    registry.create_version("stuck", folder, tags={DIGEST_TAG: "a"}, metrics={})

    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.delete_artifacts", refuse)
    registry.delete_version("stuck", "1")
    assert registry.versions("stuck") == []
