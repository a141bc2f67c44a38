"""What is written down, and where: the disk never waits for the registry."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from models.rollout.gates import Verdict
from models.rollout.messages import Attempt, Target
from models.rollout.state import State
from models.weights.cache import CommittedStore
from models.weights.fake_registry import FakeRegistry
from serve.audit import Audit
from serve.books import Books
from serve.fake_time import run
from serve.outbox import SETTLE_S
from serve.prometheus import PrometheusSink
from serve.rollout_metrics import RolloutMetrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ONE, TWO = Target("1", "a" * 64, "p1"), Target("2", "b" * 64, "p2")


class Desk:
    """Books over a fake registry that can hang."""

    def __init__(self, folder: Path) -> None:
        """Begin with version 1 committed as generation 3."""
        self.state = State("m", committed=Attempt(3, 1, ONE))
        self.registry = FakeRegistry()
        self.sink = PrometheusSink()
        self.path = folder / "audit" / "rollout.jsonl"
        self.hangs = False
        self.books = Books(
            "m",
            now=lambda: self.state,
            store=CommittedStore(folder),
            audit=Audit(folder / "audit"),
            registry=self.registry,
            in_thread=_at_once,
            in_registry_thread=self._on_registry,
            observer=RolloutMetrics(self.sink).of("m"),
        )
        self.loop = asyncio.create_task(self.books.run())

    def lines(self) -> list[dict[str, Any]]:
        """Return the audit, oldest first."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    async def _on_registry(self, call: Callable[..., Any], *args: object, **named: object) -> Any:
        while self.hangs:  # noqa: ASYNC110 - time flies here
            await asyncio.sleep(1.0)
        return call(*args, **named)


async def _at_once(call: Callable[..., Any], *args: object, **named: object) -> Any:
    return call(*args, **named)


def test_a_registry_that_hangs_delays_no_line_of_the_audit(tmp_path: Path) -> None:
    """The file is the record of truth; the registry follows when it can."""

    async def story() -> None:
        desk = Desk(tmp_path)
        desk.hangs = True
        desk.books.record_serving(Attempt(3, 1, ONE))
        desk.books.write("roll", ONE, TWO, result="rejected", reason="quality: it sees worse")
        desk.books.write("roll", ONE, TWO, result="desired")
        await asyncio.sleep(2 * SETTLE_S)
        assert [line["result"] for line in desk.lines()] == ["rejected", "desired"]
        assert (desk.registry.rollouts, desk.registry.serving) == ({}, {})
        desk.hangs = False
        await asyncio.sleep(60.0)
        assert [each.result for each in desk.registry.rollouts.values()] == ["rejected"]
        assert desk.registry.serving == {"m": (3, "1", "a" * 64)}
        assert 'steelyard_rollout_runs_total{model="m",outcome="written"} 1.0' in desk.sink.render().decode()
        desk.loop.cancel()

    run(story())


def test_nothing_is_written_while_replicas_wait_to_hear_of_a_commit(tmp_path: Path) -> None:
    """Disk and registry begin a moment after the decision; what a claim waits for is written at once."""

    async def story() -> None:
        desk = Desk(tmp_path)
        store = CommittedStore(tmp_path)
        await asyncio.sleep(1.0)
        desk.books.save_soon()
        desk.books.write("roll", None, ONE, result="committed", generation=3)
        desk.books.record_serving(Attempt(3, 1, ONE))
        await asyncio.sleep(0.9 * SETTLE_S)
        assert (store.load("m"), desk.path.exists(), desk.registry.serving) == (None, False, {})
        await asyncio.sleep(0.2 * SETTLE_S)
        record = store.load("m")
        assert record is not None
        assert (record.generation, len(desk.lines())) == (3, 1)
        assert desk.registry.serving == {"m": (3, "1", "a" * 64)}
        desk.state = State("m", committed=Attempt(4, 1, TWO, ONE))
        desk.books.save()
        await desk.books.saved()
        record = store.load("m")
        assert record is not None
        assert record.generation == 4
        desk.loop.cancel()

    run(story())


def test_an_older_commit_never_overwrites_what_serves_now(tmp_path: Path) -> None:
    """What was told too late is not told at all."""

    async def story() -> None:
        desk = Desk(tmp_path)
        desk.registry.down = True
        desk.books.record_serving(Attempt(3, 1, ONE))
        await asyncio.sleep(1.0)
        newer = Attempt(4, 1, TWO, ONE)
        desk.state = State("m", committed=newer)
        desk.books.record_serving(newer)
        desk.registry.down = False
        await asyncio.sleep(120.0)
        assert desk.registry.serving == {"m": (4, "2", "b" * 64)}
        desk.loop.cancel()

    run(story())


def test_a_run_carries_the_verdicts_on_its_own_version_only(tmp_path: Path) -> None:
    """The state remembers the gates of the target that was tried last."""

    async def story() -> None:
        desk = Desk(tmp_path)
        verdicts = (Verdict("latency", passed=True, reason="", measured={"candidate_ms": 20.0}),)
        desk.state = State("m", last=TWO, verdicts=verdicts)
        desk.books.write("roll", ONE, TWO, result="rejected", reason="load: it broke")
        desk.books.write("roll", TWO, ONE, result="rejected", reason="load: it broke")
        await asyncio.sleep(1.0)
        measured = {each.version: each.measured for each in desk.registry.rollouts.values()}
        assert measured == {"2": {"latency_passed": 1.0, "latency_candidate_ms": 20.0}, "1": {}}
        desk.loop.cancel()

    run(story())
