"""evaluate: what the parent asks, checks and stores, with the child stood in for by its result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import ConversionError, EvaluationError, ReleaseRejectedError, UnknownVersionError
from models.weights import evaluation
from models.weights.evaluation import evaluate
from models.weights.fake_registry import FakeRegistry
from models.weights.keys import KeyFolder
from models.weights.registry import DIGEST_TAG
from models.weights.trust import SignatureRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.weights.manifest import Manifest

RULE = SignatureRule(KeyFolder(Path("nowhere")), required=False)
RESULT = {"map50_95": 0.6, "map50": 0.9, "boxes": 7, "method": "test 1"}


@pytest.fixture
def registry(
    release_files: Mapping[str, NDArray[np.uint8]], make_manifest: Callable[..., Manifest], tmp_path: Path
) -> FakeRegistry:
    """Return a registry whose model ``m`` has one sound version with the classes apple and pear."""
    found = FakeRegistry()
    folder = tmp_path / "release"
    for name, data in release_files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.tobytes())
    files = {name: data.tobytes() for name, data in release_files.items() if name != "manifest.json"}
    found.create_version("m", folder, tags={DIGEST_TAG: make_manifest(files).digest}, metrics={})
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the data.yaml of one labelled image."""
    for name, text in (("images/a.jpg", "picture"), ("labels/a.txt", "0 0.5 0.5 0.1 0.1\n")):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_text(text, encoding="utf-8")
    listing = tmp_path / "set" / "data.yaml"
    listing.write_text("val: images\nnames: [apple, pear]\n", encoding="utf-8")
    return listing


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the child; return what it was asked."""
    requests: list[dict[str, Any]] = []

    def run(_module: str, request: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        requests.append(request)
        return dict(RESULT)

    monkeypatch.setattr(evaluation.sandbox, "run_sandboxed", run)
    return requests


def test_an_evaluation_is_kept_with_its_data(registry: FakeRegistry, data: Path, asked: list[dict[str, Any]]) -> None:
    """The release's own network is run on every image, and the registry remembers on which data."""
    found = evaluate(registry, "m", "1", data, rule=RULE)
    assert registry.evaluations("m", "1") == (found,)
    assert (found.map50_95, found.map50, found.images, found.boxes) == (0.6, 0.9, 1, 7)
    assert (found.release, found.data_name) == (registry.version("m", "1").digest, "set/data.yaml")
    (request,) = asked
    assert request["onnx"].endswith("release/model.onnx")
    assert request["contract"]["names"] == ("apple", "pear")
    assert request["samples"] == [[str(data.parent / "images" / "a.jpg"), str(data.parent / "labels" / "a.txt")]]
    assert evaluate(registry, "m", "1", data, rule=RULE).data == found.data
    assert len(registry.evaluations("m", "1")) == 1


@pytest.mark.parametrize(
    "result",
    [
        {},
        RESULT | {"map50": "x"},
        RESULT | {"map50_95": float("nan")},
        RESULT | {"map50_95": 1.5},
        RESULT | {"boxes": 1e999},
    ],
)
def test_what_the_child_says_is_checked(
    registry: FakeRegistry, data: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    """It worked on an untrusted file; nothing of it is stored."""
    monkeypatch.setattr(evaluation.sandbox, "run_sandboxed", lambda *_, **__: result)
    with pytest.raises(EvaluationError):
        evaluate(registry, "m", "1", data, rule=RULE)
    assert registry.evaluations("m", "1") == ()


def test_data_that_changes_meanwhile_is_not_compared(
    registry: FakeRegistry, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest would stand for something else than what was looked at."""

    def run(*_: object, **__: object) -> dict[str, Any]:
        (data.parent / "images" / "a.jpg").write_text("another", encoding="utf-8")
        return dict(RESULT)

    monkeypatch.setattr(evaluation.sandbox, "run_sandboxed", run)
    with pytest.raises(EvaluationError, match="changed"):
        evaluate(registry, "m", "1", data, rule=RULE)
    assert registry.evaluations("m", "1") == ()


def test_each_refusal_comes_before_any_work(registry: FakeRegistry, data: Path, asked: list[dict[str, Any]]) -> None:
    """Unknown versions, unfinished ones, tampered files, foreign classes."""
    with pytest.raises(UnknownVersionError):
        evaluate(registry, "m", "9", data, rule=RULE)
    data.write_text("val: images\nnames: [pear, apple]\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="'pear' in the data"):
        evaluate(registry, "m", "1", data, rule=RULE)
    registry.files["m", "1"]["model.onnx"] = b"other"
    with pytest.raises(ReleaseRejectedError):
        evaluate(registry, "m", "1", data, rule=RULE)
    registry.set_state("m", "1", "")
    with pytest.raises(EvaluationError, match="not ready"):
        evaluate(registry, "m", "1", data, rule=RULE)
    assert asked == []


def test_a_child_that_refuses_is_an_evaluation_that_failed(
    registry: FakeRegistry, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's sentence is told as it is."""

    def run(*_: object, **__: object) -> dict[str, Any]:
        msg = "The image a.jpg cannot be read"
        raise ConversionError(msg)

    monkeypatch.setattr(evaluation.sandbox, "run_sandboxed", run)
    with pytest.raises(EvaluationError, match=r"a\.jpg cannot be read"):
        evaluate(registry, "m", "1", data, rule=RULE)
