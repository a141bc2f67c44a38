"""Fault points: nothing unless armed, refused unless allowed, once each."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import serve.faults
from models.errors import InvalidOptionError
from serve.faults import EXIT_STATUS, POINTS, FaultInjectedError, FaultPoints


def test_nothing_happens_at_a_point_that_is_not_armed() -> None:
    """Every known point can be passed."""

    async def pass_all() -> None:
        points = FaultPoints(allowed=False, leave=lambda _: pytest.fail("left"))
        for point in POINTS:
            await points.hit(point)

    asyncio.run(pass_all())


def test_arming_is_refused_unless_allowed() -> None:
    """The setting is the fence; the message names it."""
    with pytest.raises(InvalidOptionError, match="STEELYARD_ALLOW_FAULT_INJECTION"):
        FaultPoints(allowed=False).arm("actor.after_commit", "exit")


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("actor.nowhere", "exit"),
        ("actor.after_commit", "explode"),
        ("actor.after_commit", "delay"),
        ("actor.after_commit", "delay:x"),
        ("actor.after_commit", "delay:-1"),
        ("actor.after_commit", "delay:nan"),
        ("actor.after_commit", "delay:inf"),
        ("replica.after_load", "leak:0"),
        ("replica.after_load", "leak:65"),
        ("replica.after_load", "leak:x"),
    ],
)
def test_a_mistake_in_arming_is_told(point: str, action: str) -> None:
    """Unknown points and malformed actions are refused, so that no test believes in a fault that never was."""
    with pytest.raises(InvalidOptionError):
        FaultPoints(allowed=True).arm(point, action)


def test_each_action_fires_once() -> None:
    """Exit leaves with its status, raise raises, delay waits; the second pass is free."""
    left: list[int] = []
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def check() -> None:
        points = FaultPoints(allowed=True, leave=left.append, sleep=sleep)
        points.arm("actor.after_commit", "exit")
        points.arm("actor.mid_go", "raise")
        points.arm("replica.after_flip", "delay:1.5")
        assert points.armed("actor.mid_go")
        await points.hit("actor.after_commit")
        with pytest.raises(FaultInjectedError, match=r"actor\.mid_go"):
            await points.hit("actor.mid_go")
        await points.hit("replica.after_flip")
        assert not points.armed("actor.mid_go")
        for point in POINTS:
            await points.hit(point)

    asyncio.run(check())
    assert (left, slept) == ([EXIT_STATUS], [1.5])


def test_a_leak_stays() -> None:
    """What was leaked is kept and was written to; it adds up."""

    async def check() -> None:
        points = FaultPoints(allowed=True)
        for size in (1, 2):
            points.arm("replica.after_load", f"leak:{size}")
            await points.hit("replica.after_load")
            await points.hit("replica.after_load")
        assert [len(lost) for lost in points._leaked] == [1024**2, 2 * 1024**2]
        assert all(set(lost[::4096]) == {1} for lost in points._leaked)

    asyncio.run(check())


def test_every_named_point_is_somewhere_in_the_code_and_every_hit_is_named() -> None:
    """A point nobody passes would let a fault test succeed without a fault."""
    folder = Path(serve.faults.__file__).parent
    texts = [path.read_text() for path in folder.glob("*.py") if path.name != "faults.py"]
    used = {name for text in texts for name in re.findall(r'"((?:actor|replica)\.[a-z_]+)"', text)}
    assert used == POINTS
