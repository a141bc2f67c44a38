"""What operators see of the registry and in it: whole rollouts with fake engines while it comes and goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rollout_world import MODEL, Fleet

from models.rollout.ledger import FakeLedger
from models.weights.manifest import ONNX
from serve.fake_service import FakeService
from serve.fake_time import run
from serve.health import RegistryNote

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    import pytest


class _Edge(FakeService):
    """A service whose rollout is the fleet's."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(MODEL)
        self.fleet = fleet

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout as the actor tells it."""
        assert model == MODEL
        return dict(self.fleet.actor.status())


async def _note(fleet: Fleet) -> str | None:
    return await RegistryNote(_Edge(fleet)).read()


async def _restarted(fleet: Fleet) -> Fleet:
    """Serve version 1, then end the whole service: only home and registry remain."""
    await fleet.begin()
    await fleet.start("r#1")
    await fleet.until(fleet.all_on("1"))
    await asyncio.sleep(1.0)
    await fleet.kill("r#1")
    await fleet.crash()
    fleet.ledger = FakeLedger()
    return fleet


def _story(work: Callable[[Fleet], Coroutine[Any, Any, None]], folder: Path) -> None:
    async def story() -> None:
        await work(Fleet(folder))

    run(story())


def test_a_cold_start_without_the_registry_says_so_until_it_answers(tmp_path: Path) -> None:
    """It serves the last committed release from the cache, verified; health names the version."""

    async def story(fleet: Fleet) -> None:
        await _restarted(fleet)
        fleet.registry.down = True
        await fleet.begin()
        await fleet.start("r#2")
        await fleet.until(fleet.all_on("1"))
        assert await _note(fleet) == "unreachable since start; serving version 1 from the cache"
        told = fleet.actor.status()["registry"]
        assert (told["age_s"], told["from_cache"]) == (None, True)
        assert told["failures"] > 0
        fleet.registry.down = False
        await asyncio.sleep(5.0)
        assert await _note(fleet) == "reachable"
        fleet.registry.down = True
        await asyncio.sleep(30.0)
        assert str(await _note(fleet)).startswith("unreachable for ")
        assert fleet.metrics is not None
        fleet.metrics.refresh()
        age = next(
            line for line in fleet.sink.render().decode().splitlines() if line.startswith("steelyard_registry_age")
        )
        assert 25.0 < float(age.split()[-1]) < 40.0

    _story(story, tmp_path)


def test_a_cold_start_with_nothing_but_a_damaged_copy_names_it(tmp_path: Path) -> None:
    """At every try, until the registry is back and the release is fetched anew."""

    async def story(fleet: Fleet) -> None:
        await _restarted(fleet)
        fleet.registry.down = True
        graph = _graph(fleet.settings.cache)
        graph.write_bytes(b"grape 1")
        await fleet.begin()
        starting = asyncio.create_task(fleet.start("r#2"))
        await asyncio.sleep(30.0)
        told = fleet.actor.status()
        assert (told["state"], told["serving"], told["step"]) == ("starting", None, "fetch")
        for words in ("version 1 of m", fleet.digests["1"][:12], "digest differs", "cannot be reached", "backup"):
            assert words in told["reason"]
        fleet.registry.down = False
        await starting
        await fleet.until(fleet.all_on("1"))

    _story(story, tmp_path)


def _graph(folder: Path) -> Path:
    (found,) = folder.rglob(ONNX)
    return found


def test_every_finished_rollout_is_a_run_in_the_registry(tmp_path: Path) -> None:
    """The first, a refusal, a promotion and a rollback, each with who asked; the audit stays whole without it."""

    async def story(fleet: Fleet) -> None:
        await fleet.begin()
        await fleet.start("r#1")
        await fleet.until(fleet.all_on("1"))
        await fleet.actor.promote("2", "better", "operator")
        await fleet.until(fleet.all_on("2"))
        await asyncio.sleep(1.0)
        await fleet.actor.roll_back(20.0, "operator")
        await fleet.until(fleet.all_on("1"))
        await asyncio.sleep(1.0)
        runs = list(fleet.registry.rollouts.values())
        assert [(each.from_version, each.version, each.result, each.who, each.asked) for each in runs] == [
            ("", "1", "committed", "rollout", ""),
            ("1", "2", "committed", "operator", "better"),
            ("2", "1", "committed", "operator", "rollback"),
        ]
        assert [each.generation for each in runs] == [1, 2, 3]
        assert set(runs[1].steps) == {"fetch", "judge", "load", "hold"}
        assert runs[1].measured["contract_passed"] == 1.0
        assert 'steelyard_rollout_runs_total{model="m",outcome="written"} 3.0' in fleet.sink.render().decode()

    _story(story, tmp_path)


def test_a_registry_that_takes_no_runs_delays_no_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit has every line, and what is lost is told in a metric."""

    async def story(fleet: Fleet) -> None:
        def refuse(_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(fleet.registry, "record_rollout", refuse)
        await fleet.begin()
        await fleet.start("r#1")
        await fleet.until(fleet.all_on("1"))
        begun = asyncio.get_running_loop().time()
        await fleet.actor.promote("2", "better", "operator")
        await fleet.until(fleet.all_on("2"))
        assert asyncio.get_running_loop().time() - begun < 5.0
        await asyncio.sleep(600.0)
        assert [line["result"] for line in fleet.audit() if line["action"] == "roll"].count("committed") == 2
        assert fleet.registry.serving[MODEL][1] == "2"
        assert 'steelyard_rollout_runs_total{model="m",outcome="lost"} 2.0' in fleet.sink.render().decode()

    _story(story, tmp_path)
