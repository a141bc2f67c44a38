"""``steelyard versions``: the list as ever, and what may be deleted."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from typer.testing import CliRunner

from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.registry import DIGEST_TAG
from serve.client import ServiceError
from serve.commands.application import app

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


class FakeClient:
    """Answers with one rollout, or refuses."""

    def __init__(self, answer: dict[str, Any] | ServiceError) -> None:
        """Keep the answer."""
        self.answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rollout(self, _model: str) -> dict[str, Any]:
        """Return or raise it."""
        if isinstance(self.answer, ServiceError):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("STEELYARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STEELYARD_HOME", str(tmp_path / "home"))


@pytest.fixture(name="registry")
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRegistry:
    """Return six old versions, the fifth desired; the home serves the fourth and served the third before."""
    registry = FakeRegistry()
    (tmp_path / "files").mkdir()
    for number in range(1, 7):
        tags = {DIGEST_TAG: f"{number}" * 64}
        registry.create_version("checkout", tmp_path / "files", tags=tags, metrics={})
    registry.promote("checkout", "5", promotion="p", reason="test")
    home = tmp_path / "home"
    CommittedStore(home).save(Committed("checkout", 7, "4", "4" * 64, "3", "3" * 64))
    cache = ReleaseCache(home / "cache")
    for number in (1, 4):
        cache.put(f"{number}" * 64, {"f": np.zeros(1, np.uint8)})
    for module in ("weights", "versions"):
        monkeypatch.setattr(f"serve.commands.{module}.open_registry", lambda _settings, **_options: registry)
    return registry


def serving(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | ServiceError) -> None:
    """Let a service run out of the home."""
    monkeypatch.setattr("serve.commands.versions.connect", lambda *_: FakeClient(answer))


def state(**changes: object) -> dict[str, Any]:
    """Return a rollout in which one replica still holds version 2."""
    replicas = [{"id": "a", "version": "2", "state": "preparing"}]
    return {"model": "checkout", "desired": "5", "serving": "4", "generation": 7, "replicas": replicas} | changes


def versions(*arguments: object) -> Result:
    """Run ``steelyard versions`` in this process."""
    return CliRunner().invoke(app, ["versions", *(str(argument) for argument in arguments)])


def left(registry: FakeRegistry) -> list[str]:
    """Return the versions that are still there."""
    return [info.version for info in registry.versions("checkout")]


@pytest.mark.parametrize("arguments", [["checkout", "--json"], ["--json", "checkout"], ["list", "checkout", "--json"]])
def test_the_list_is_what_it_was(registry: FakeRegistry, arguments: list[str]) -> None:
    """With options before or after the name, and under a name of its own."""
    done = versions(*arguments)
    assert done.exit_code == 0
    assert [row["version"] for row in json.loads(done.stdout)["versions"]] == left(registry)


def test_help_names_all_three() -> None:
    """``versions`` alone and ``versions --help`` show what there is."""
    for arguments in ([], ["--help"]):
        done = versions(*arguments)
        assert {"list", "delete", "prune"} <= set(done.output.split())


def test_free_versions_are_deleted(registry: FakeRegistry, tmp_path: Path) -> None:
    """From the registry and the cache, and the audit says so."""
    done = versions("delete", "checkout", "1", "2", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"model": "checkout", "deleted": ["1", "2"], "kept": {}, "dry_run": False}
    assert left(registry) == ["3", "4", "5", "6"]
    assert [item.name for item in ReleaseCache(tmp_path / "home" / "cache").stored()] == ["4" * 64]
    lines = [json.loads(line) for line in (tmp_path / "home" / "audit" / "rollout.jsonl").read_text().splitlines()]
    assert [(line["action"], line["from"]["version"], line["to"], line["result"]) for line in lines] == [
        ("delete", "1", None, "deleted"),
        ("delete", "2", None, "deleted"),
    ]


@pytest.mark.parametrize(
    ("version", "reason"),
    [("3", "a rollback returns to it"), ("4", "version 4 of checkout serves"), ("5", "is the desired version")],
)
def test_what_is_in_use_is_refused_and_nothing_is_deleted(registry: FakeRegistry, version: str, reason: str) -> None:
    """Also not the free version beside it: somebody is mistaken about what he deletes."""
    done = versions("delete", "checkout", "1", version)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(left(registry)) == 6


def test_a_dry_run_deletes_nothing(registry: FakeRegistry) -> None:
    """And says what would happen."""
    done = versions("delete", "checkout", "1", "--dry-run")
    assert (done.exit_code, len(left(registry))) == (0, 6)
    assert "would be deleted" in done.stdout
    pruned = versions("prune", "checkout", "--keep", 1, "--days", 0, "--dry-run", "--json")
    assert json.loads(pruned.stdout)["deleted"] == ["1", "2"]
    assert len(left(registry)) == 6


def test_an_unknown_version_deletes_nothing(registry: FakeRegistry) -> None:
    """A slip in one number is told before anything is gone."""
    done = versions("delete", "checkout", "1", "99")
    assert done.exit_code == 2
    assert "no version 99" in done.stderr
    assert len(left(registry)) == 6


def test_pruning_keeps_what_is_in_use_and_the_newest(registry: FakeRegistry) -> None:
    """Settings give the rule, options overrule it; young versions stay."""
    assert json.loads(versions("prune", "checkout", "--json").stdout)["deleted"] == []
    assert json.loads(versions("prune", "checkout", "--keep", 1, "--days", 36_000, "--json").stdout)["deleted"] == []
    done = json.loads(versions("prune", "checkout", "--keep", 1, "--days", 0, "--json").stdout)
    assert done["deleted"] == ["1", "2"]
    assert done["kept"]["6"] == "is one of the newest 1"
    assert left(registry) == ["3", "4", "5", "6"]


def test_what_a_replica_of_the_running_service_holds_stays(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is asked, too."""
    serving(monkeypatch, state())
    done = versions("prune", "checkout", "--keep", 0, "--days", 0, "--json")
    assert json.loads(done.stdout)["kept"]["2"] == "is on its way to the replicas"
    assert left(registry) == ["2", "3", "4", "5"]


def test_a_service_of_another_home_is_refused(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would roll back to is not known here."""
    serving(monkeypatch, state(generation=12))
    done = versions("delete", "checkout", "1")
    assert done.exit_code == 1
    assert "where the service's home is" in done.stderr
    assert len(left(registry)) == 6


@pytest.mark.parametrize(("code", "exit_code"), [("unknown_model", 0), ("unreachable", 2)])
def test_a_service_that_does_not_tell(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, code: str, exit_code: int
) -> None:
    """One that serves other models has no say; one that cannot be asked might."""
    serving(monkeypatch, ServiceError("no", code=code))
    assert versions("delete", "checkout", "1").exit_code == exit_code
    assert len(left(registry)) == (5 if exit_code == 0 else 6)


def test_a_version_promoted_in_between_stays(registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry refuses what the list did not know yet."""
    delete = registry.delete_version

    def late(model: str, version: str) -> None:
        registry.promote(model, "2", promotion="q", reason="somebody else")
        delete(model, version)

    monkeypatch.setattr(registry, "delete_version", late)
    done = versions("delete", "checkout", "1", "2", "--json")
    assert done.exit_code == 1
    assert "carries the alias production" in done.stderr
    assert json.loads(done.stdout)["deleted"] == ["1"]
    assert left(registry) == ["2", "3", "4", "5", "6"]
