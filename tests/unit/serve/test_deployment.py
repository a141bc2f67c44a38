"""How a replica's threads and memory are shared out among the engines of its models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.engine.backends.fake import FakeBackend
from models.engine.engine import EngineSettings
from serve import deployment
from serve.deployment import MOST_IMPORT_S, RESERVE_MB, Detector, engine_settings, make_engine, start_seconds
from serve.settings import Settings


@pytest.mark.parametrize(("models", "threads", "share"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (3, 2, 1)])
def test_models_share_the_threads_and_the_memory(models: int, threads: int, share: int) -> None:
    """Engines that each took everything would be in each other's way once all are busy."""
    settings = Settings(models=tuple(f"m{number}" for number in range(models)), memory_budget_mb=1500)
    limits = engine_settings(settings, threads, taken=400 * 1024**2)
    assert (limits.threads, limits.memory_budget_mb) == (share, (1100 - RESERVE_MB) // models)


def test_replicas_of_a_machine_agree_on_its_processors(tmp_path: Path) -> None:
    """All of them find the same file in this machine's cache, whatever their models."""
    files = {
        engine_settings(Settings(home=tmp_path, models=models), 2, taken=0).processors
        for models in (("a",), ("a", "b"))
    }
    assert files == {Settings(home=tmp_path).cache / "processors.lock"}


def test_loads_onto_a_gpu_take_no_turns(tmp_path: Path) -> None:
    """They take minutes and leave the processors alone."""
    settings = Settings(home=tmp_path, models=("a",), gpus=1, backend="onnxruntime")
    assert engine_settings(settings, 2, taken=0).processors is None


@pytest.mark.parametrize(("factor", "doubt"), [(1.0, 1.0), (1.1, 1.1), (1.6, 1.2), (2.0, 1.5), (8.0, 6.0)])
def test_a_pace_is_doubted_only_where_the_gate_might_refuse_it(factor: float, doubt: float) -> None:
    """A promotion waits for every further look, so what the gate lets pass easily gets none; what it refuses, all."""
    limits = engine_settings(Settings(latency_factor=factor), 2, taken=0)
    assert limits.doubt == pytest.approx(doubt)


def test_the_runtime_gets_no_more_threads_than_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share holds for decoding and for the network alike."""
    asked: list[dict[str, Any]] = []

    def select(name: str, **options: Any) -> FakeBackend:
        asked.append({"name": name, **options})
        return FakeBackend()

    monkeypatch.setattr(deployment, "select_backend", select)
    settings = Settings(backend="fake", precision="fp32")
    make_engine(settings, EngineSettings(threads=3), None)  # type: ignore[arg-type]
    common = {"name": "fake", "precision": "fp32", "gpu_share": 1.0, "engines": settings.cache / "engines"}
    assert asked == [{**common, "threads": 3, "gpu": False, "fake_service_s": 0.0}]


async def test_a_replica_spares_what_stays_before_it_loads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards, what is left of its first release would never be freed; threads take short turns from the start."""
    done: list[str] = []

    async def start() -> None:
        done.append("start")

    async def build(*_: Any, **__: Any) -> Any:
        done.append("build")
        return SimpleNamespace(start=start), None

    monkeypatch.setattr(deployment, "keep_off_the_network", lambda: None)
    monkeypatch.setattr(deployment, "_start_logging", lambda *_: None)
    monkeypatch.setattr(deployment, "RaySink", lambda _: None)
    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="a"))
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: replica)
    monkeypatch.setattr(deployment, "_build", build)
    monkeypatch.setattr(deployment, "spare_what_stays", lambda: done.append("spare"))
    monkeypatch.setattr(deployment, "hand_over_soon", lambda: done.append("hand over"))
    await Detector.__init__(SimpleNamespace(), {}, 1, None)  # type: ignore[misc, arg-type]
    assert done == ["hand over", "build", "spare", "start"]


async def test_a_replica_tells_what_it_holds_and_how_long_it_took_to_start() -> None:
    """Ray Serve asks its replicas for both."""
    made: Any = SimpleNamespace(_replica=SimpleNamespace(workload=lambda: {"inside:m": 3.0}), _start_s=9.0)
    assert await Detector.record_autoscaling_stats(made) == {"inside:m": 3.0, "start_s": 9.0}


@pytest.mark.parametrize(
    ("born", "took"), [(96.0, 12.0), (10.0, 8.0 + MOST_IMPORT_S), (101.0, 8.0)], ids=["new", "kept", "another clock"]
)
def test_a_process_that_was_kept_at_hand_did_not_take_so_long_to_start(born: float, took: float) -> None:
    """Eight seconds from the constructor to the first answer, and what came before it, up to a bound."""
    assert start_seconds(born, 100.0, 108.0) == took
