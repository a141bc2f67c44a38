"""A finished rollout as an MLflow run, in a real store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import RegistryError
from models.weights import mlflow_runs
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.rollout_runs import RolloutRun

if TYPE_CHECKING:
    from pathlib import Path

BEGUN = datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)
RUN = RolloutRun(
    ident="r1",
    model="m",
    version="2",
    digest="b" * 64,
    from_version="1",
    from_digest="a" * 64,
    result="committed",
    reason="",
    who="operator",
    asked="better on trays",
    generation=7,
    tries=2,
    begun=BEGUN,
    ended=BEGUN + timedelta(seconds=12.5),
    steps={"fetch": 2.5, "load": 10.0},
    measured={"quality_candidate": 0.5, "odd (name)": 1.0, "endless": float("inf")},
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    """Return one MLflow registry on SQLite: creating its tables takes seconds."""
    return MlflowRegistry(f"sqlite:///{tmp_path_factory.mktemp('home')}/registry/mlflow.db")


def _runs(registry: MlflowRegistry, ident: str) -> list[Any]:
    client = registry._connection.connect()
    experiment = client.get_experiment_by_name(mlflow_runs.EXPERIMENT)
    found = client.search_runs([experiment.experiment_id])
    return [run for run in found if run.data.tags[mlflow_runs.IDENT_TAG] == ident]


def test_a_rollout_becomes_one_finished_run(registry: MlflowRegistry) -> None:
    """From, to, result, who and why as parameters; seconds and figures as metrics; its own times."""
    registry.record_rollout(RUN)
    (run,) = _runs(registry, "r1")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "m 1 to 2: committed")
    assert run.info.start_time == 1_000 * int(BEGUN.timestamp()) + 250
    assert run.info.end_time - run.info.start_time == 12_500
    assert run.data.params == {
        "model": "m",
        "from_version": "1",
        "from_digest": "a" * 64,
        "version": "2",
        "digest": "b" * 64,
        "result": "committed",
        "who": "operator",
        "asked": "better on trays",
        "generation": "7",
        "tries": "2",
    }
    assert run.data.metrics == {
        "fetch_s": 2.5,
        "load_s": 10.0,
        "total_s": 12.5,
        "quality_candidate": 0.5,
        "odd _name_": 1.0,
    }
    assert run.data.tags["steelyard.action"] == "rollout"


def test_a_write_that_is_repeated_completes_the_run_that_it_began(
    registry: MlflowRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that failed in the middle holds one run in the end, whole."""
    client = registry._connection.connect()
    rollout = replace(RUN, ident="r2", result="rejected", reason="quality: " + "it sees worse " * 100)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(client, "log_batch", fail)
        with pytest.raises(RegistryError):
            registry.record_rollout(rollout)
    assert [run.info.status for run in _runs(registry, "r2")] == ["RUNNING"]
    for _ in range(2):
        registry.record_rollout(rollout)
    (run,) = _runs(registry, "r2")
    assert (run.info.status, run.data.params["result"]) == ("FAILED", "rejected")
    assert run.data.params["reason"].startswith("quality: it sees worse")


@pytest.mark.parametrize("result", ["aborted", "superseded"])
def test_what_ended_for_another_reason_than_its_own_was_killed(registry: MlflowRegistry, result: str) -> None:
    """MLflow's pages tell refusals from interruptions by their colour."""
    registry.record_rollout(replace(RUN, ident=result, result=result, from_version="", from_digest=""))
    (run,) = _runs(registry, result)
    assert (run.info.status, run.info.run_name) == ("KILLED", f"m nothing to 2: {result}")
    assert "from_version" not in run.data.params


def test_runs_of_rollouts_neither_make_versions_nor_leave_files(registry: MlflowRegistry, tmp_path: Path) -> None:
    """Versions are made by registration alone."""
    registry.record_rollout(replace(RUN, ident="r3"))
    assert registry.models() == []
    (tmp_path / "release").mkdir()
    info = registry.create_version("m", tmp_path / "release", tags={}, metrics={})
    registry.record_rollout(replace(RUN, ident="r4"))
    assert [each.version for each in registry.versions("m")] == [info.version]
