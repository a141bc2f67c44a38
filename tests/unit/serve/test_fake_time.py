"""The loop whose time flies."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from types import SimpleNamespace

import pytest

from serve.fake_time import run


def test_hours_pass_in_moments_and_in_order() -> None:
    """Timers fire in the order of their moments, and the loop's clock shows their waits."""

    async def work() -> tuple[list[str], float]:
        seen: list[str] = []

        async def note(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(name)

        begun = asyncio.get_running_loop().time()
        await asyncio.gather(note("late", 600.0), note("early", 60.0))
        return seen, asyncio.get_running_loop().time() - begun

    begun = time.monotonic()
    seen, passed = run(work())
    assert (seen, 599.0 < passed < 700.0) == (["early", "late"], True)
    assert time.monotonic() - begun < 5.0


def test_what_never_ends_is_ended() -> None:
    """A test that waits for nothing fails instead of hanging."""
    with pytest.raises(TimeoutError):
        run(asyncio.Event().wait(), limit_s=5.0)


def test_a_slow_machine_makes_no_deadline_pass() -> None:
    """Code takes no time here: what is due in a millisecond comes before what is due in two, however long it takes."""

    async def work() -> float:
        async with asyncio.timeout(0.002):
            begun = asyncio.get_running_loop().time()
            assert sum(range(1_000_000)) > 0
            await asyncio.sleep(0.001)
            return asyncio.get_running_loop().time() - begun

    assert run(work()) == pytest.approx(0.001, abs=1e-4)


def test_a_machine_that_stands_still_beside_a_worker_skips_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread works, time passes as outside, and yet only up to the next timer at a time."""
    leaps = itertools.count(0.0, 10.0)
    monkeypatch.setattr("serve.fake_time.time", SimpleNamespace(monotonic=lambda: next(leaps)))
    ends = threading.Event()

    async def work() -> float:
        loop = asyncio.get_running_loop()
        thread = loop.run_in_executor(None, ends.wait, 20.0)
        begun = loop.time()
        await asyncio.sleep(0.001)
        passed = loop.time() - begun
        ends.set()
        assert await thread
        return passed

    assert run(work()) == pytest.approx(0.001, abs=1e-4)
