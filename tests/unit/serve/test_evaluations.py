"""``steelyard evaluate``: what it prints, with the evaluation stood in for by its result."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from models.errors import EvaluationError
from models.weights.fake_registry import FakeRegistry
from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, Evaluation
from serve.commands.application import app

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

FOUND = Evaluation("ab" * 32, "set/data.yaml", "2" * 64, 0.6, 0.9, 12, 34, "test 1", "2026-01-02")


def evaluate(version: str, folder: Path, *options: str) -> Result:
    """Run the command in this process."""
    data = str(folder / "data.yaml")
    return CliRunner().invoke(app, ["evaluate", "m", version, "--data", data, "--home", str(folder / "home"), *options])


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRegistry:
    """Return a registry with versions 1, promoted, and 2; evaluating stores ``FOUND``."""
    found = FakeRegistry()
    (tmp_path / "files").mkdir()
    for number in "12":
        tags = {DIGEST_TAG: number * 64, PROMOTABLE_TAG: "true"}
        found.create_version("m", tmp_path / "files", tags=tags, metrics={})
    found.promote("m", "1", promotion="p", reason="test")

    def run(registry: FakeRegistry, model: str, version: str, _data: Path, **_: Any) -> Evaluation:
        if version == "9":
            msg = "No image of the data set/data.yaml has a label file"
            raise EvaluationError(msg)
        registry.record_evaluation(model, version, FOUND)
        return FOUND

    monkeypatch.setattr("models.weights.evaluation.evaluate", run)
    monkeypatch.setattr("serve.commands.evaluations.open_registry", lambda _settings: found)
    return found


def test_the_scores_are_printed_beside_those_of_the_promoted_version(registry: FakeRegistry, tmp_path: Path) -> None:
    """So that everybody sees before a promotion what the gate will say."""
    registry.record_evaluation("m", "1", replace(FOUND, map50_95=0.65))
    done = evaluate("2", tmp_path)
    assert done.exit_code == 0
    assert "mAP50-95 0.6000, mAP50 0.9000 on 12 images with 34 boxes of set/data.yaml" in done.stdout
    assert "version 1, which is promoted, has mAP50-95 0.6500 there: a change of -0.0500" in done.stdout


def test_a_promoted_version_that_was_not_evaluated_there_is_named(registry: FakeRegistry, tmp_path: Path) -> None:
    """On other data it may have been."""
    registry.record_evaluation("m", "1", replace(FOUND, data="cd" * 32))
    done = evaluate("2", tmp_path)
    assert done.exit_code == 0
    assert "version 1, which is promoted, is not evaluated on this data" in done.stderr
    assert "promoted" not in evaluate("1", tmp_path).output


@pytest.mark.usefixtures("registry")
def test_programs_get_json_and_nothing_else(tmp_path: Path) -> None:
    """Every number, the data's digest and the release's."""
    done = evaluate("2", tmp_path, "--json")
    printed = json.loads(done.stdout)
    assert (printed["map50_95"], printed["map50"], printed["data"]) == (0.6, 0.9, "ab" * 32)
    assert (printed["model"], printed["version"], printed["digest"]) == ("m", "2", "2" * 64)


@pytest.mark.usefixtures("registry")
def test_data_that_cannot_be_used_exits_with_two(tmp_path: Path) -> None:
    """One line says why."""
    done = evaluate("9", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.splitlines() == ["error: No image of the data set/data.yaml has a label file"]
