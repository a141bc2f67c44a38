"""What the gates are given: the right contracts and evaluations of the right releases."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import RegistryError
from models.rollout.messages import Target
from models.rollout.order import PLAIN, Order
from models.types import Thresholds
from models.weights.cache import ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from models.weights.registry import DIGEST_TAG, Evaluation
from serve.depot import Depot
from serve.fake_time import run
from serve.faults import FaultPoints
from serve.judging import judge
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.rollout.gates import Verdict


class Place:
    """A registry with three versions of ``m``: 1 and 2 have the same classes, 3 has one more."""

    def __init__(self, folder: Path) -> None:
        """Build it, and a depot that has nothing yet."""
        self.registry = FakeRegistry()
        self.targets: list[Target] = []
        for number, names in enumerate((("a",), ("a",), ("a", "b")), start=1):
            graph = f"graph {number}".encode()
            manifest = Manifest(
                "m", "detect", names, 32, 320, "end2end", dynamic=True, thresholds=Thresholds(),
                files={ONNX: FileEntry(hashlib.sha256(graph).hexdigest(), len(graph))},
                source=Source("ab" * 32, 7, "pt"), libraries={},
            )  # fmt: skip
            place = folder / str(number)
            place.mkdir()
            (place / ONNX).write_bytes(graph)
            (place / MANIFEST).write_bytes(manifest.to_bytes())
            self.registry.create_version("m", place, tags={DIGEST_TAG: manifest.digest}, metrics={})
            self.targets.append(Target(str(number), manifest.digest, "p"))
        self.depot = Depot(
            self.registry,
            ReleaseCache(folder / "cache"),
            rule=rule_of(Settings(home=folder)),
            share=lambda files: files,
            in_thread=self.in_thread,
            in_registry_thread=self.in_thread,
            faults=FaultPoints(allowed=False),
        )

    @staticmethod
    async def in_thread(call: Callable[..., Any], *args: object, **named: object) -> Any:
        """Call it at once."""
        return call(*args, **named)

    def evaluated(self, number: int, score: float, *, release: str | None = None) -> None:
        """Record an evaluation of version ``number``."""
        digest = release or self.targets[number - 1].digest
        found = Evaluation("dd" * 32, "set/data.yaml", digest, score, score, 9, 9, "test", f"2026-01-0{number}")
        self.registry.record_evaluation("m", str(number), found)

    async def judge(self, serving: int | None, target: int, order: Order = PLAIN) -> tuple[Verdict, ...]:
        """Return the verdicts on version ``target``."""
        return await judge(
            "m",
            None if serving is None else self.targets[serving - 1],
            self.targets[target - 1],
            order,
            depot=self.depot,
            registry=self.registry,
            in_registry_thread=self.in_thread,
            tolerance=0.003,
        )


def short(verdicts: tuple[Verdict, ...]) -> list[tuple[str, bool, bool]]:
    """Return gate, passed and waived of each but the first, which tells of the signature and always passes."""
    first, *others = verdicts
    assert (first.gate, first.passed) == ("signature", True)
    return [(each.gate, each.passed, each.waived) for each in others]


def test_both_versions_are_compared(tmp_path: Path) -> None:
    """A worse one is refused at quality, a changed contract before that; the order waives either."""

    async def story() -> None:
        place = Place(tmp_path)
        assert short(await place.judge(1, 2)) == [("contract", True, False), ("quality", True, False)]
        place.evaluated(2, 0.8)
        place.evaluated(1, 0.6)
        assert short(await place.judge(2, 1)) == [("contract", True, False), ("quality", False, False)]
        assert short(await place.judge(2, 1, Order(force="x"))) == [("contract", True, False), ("quality", True, True)]
        assert short(await place.judge(1, 2)) == [("contract", True, False), ("quality", True, False)]
        assert short(await place.judge(2, 3)) == [("contract", False, False)]
        allowed = await place.judge(2, 3, Order(allow_contract_change=True))
        assert short(allowed) == [("contract", True, True), ("quality", False, False)]
        assert "steelyard evaluate m 3" in allowed[2].reason

    run(story())


def test_the_first_version_and_the_serving_release_pass_without_the_registry(tmp_path: Path) -> None:
    """A cold start must not depend on it."""

    async def story() -> None:
        place = Place(tmp_path)
        place.registry.down = True
        for serving in (None, 3):
            assert short(await place.judge(serving, 3)) == [("contract", True, False), ("quality", True, False)]

    run(story())


def test_an_evaluation_of_another_release_counts_for_nothing(tmp_path: Path) -> None:
    """A tag copied from one version to another proves nothing."""

    async def story() -> None:
        place = Place(tmp_path)
        place.evaluated(1, 0.6)
        place.evaluated(2, 0.9, release="ee" * 32)
        assert short(await place.judge(1, 2))[1] == ("quality", False, False)

    run(story())


def test_a_registry_that_is_down_decides_nothing(tmp_path: Path) -> None:
    """It is an error to be tried again, no verdict."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.judge(1, 2)
        place.registry.down = True
        with pytest.raises(RegistryError):
            await place.judge(1, 2)

    run(story())
