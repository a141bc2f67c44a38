"""Calls keep off each other's processors while something loads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, png, serve

from models.engine import processors as module
from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.processors import MOST_TRIES, TURN_DEADLINE_S, Processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from models.types import Release

WAIT_S = 10.0
HOLDER = """
import sys
from pathlib import Path
from models.engine.processors import Processors
processors = Processors(Path(sys.argv[1]))
with processors.loading(), processors.own():
    print("holds", flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two processors"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a path whose folder is not there yet."""
    return tmp_path / "cache" / "processors.lock"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Return many threads."""
    with ThreadPoolExecutor(32) as threads:
        yield threads


def side_by_side(pool: ThreadPoolExecutor, *engines: Processors) -> tuple[list[set[int]], list[set[int]]]:
    """Return where a call of each engine may run, all at the same time, and where their threads may afterwards."""
    met = threading.Barrier(len(engines), timeout=WAIT_S)

    def call(processors: Processors) -> tuple[set[int], set[int]]:
        met.wait()
        with processors.own():
            inside = os.sched_getaffinity(0)
            met.wait()
        return inside, os.sched_getaffinity(0)

    found = [each.result(WAIT_S) for each in [pool.submit(call, each) for each in engines]]
    return [inside for inside, _ in found], [after for _, after in found]


def test_each_call_has_a_processor_while_something_loads(file: Path, pool: ThreadPoolExecutor) -> None:
    """Calls of one engine and of another meet on none, and their threads are free again afterwards."""
    allowed = os.sched_getaffinity(0)
    one, other = Processors(file), Processors(file)
    for engines in ((one, one), (one, other)):
        with other.loading():
            first, second = (inside := side_by_side(pool, *engines))[0]
        assert len(first) == len(second) == 1
        assert first != second
        assert inside[1] == [allowed, allowed]


def test_nothing_is_taken_while_nothing_loads(file: Path, pool: ThreadPoolExecutor) -> None:
    """Nor before a load, nor after the last of two has ended."""
    allowed = os.sched_getaffinity(0)
    processors = Processors(file)
    assert side_by_side(pool, processors)[0] == [allowed]
    with processors.loading():
        with Processors(file, clock=itertools.count(step=100).__next__).loading():  # waits for no turn
            pass
        assert len(side_by_side(pool, processors)[0][0]) == 1
    assert side_by_side(pool, processors)[0] == [allowed]


def test_whoever_finds_none_free_runs_anywhere(file: Path, pool: ThreadPoolExecutor) -> None:
    """One call more than there are processors is not kept waiting."""
    allowed = os.sched_getaffinity(0)
    count = min(len(allowed), MOST_TRIES) + 1
    if count > 30:
        pytest.skip("too many processors")
    processors = Processors(file)
    with processors.loading():
        places = side_by_side(pool, *[processors] * count)[0]
    assert sorted(map(len, places)).count(1) >= count - 1
    assert sum(place == allowed for place in places) <= 1


def test_a_failed_call_gives_its_processor_back(file: Path, pool: ThreadPoolExecutor) -> None:
    """An error inside leaves the thread free and the processor for others."""
    allowed = os.sched_getaffinity(0)
    processors = Processors(file)

    def fail() -> None:
        with processors.own():
            raise RuntimeError

    with processors.loading():
        for _ in range(2 * len(allowed)):
            with pytest.raises(RuntimeError):
                pool.submit(fail).result(WAIT_S)
        places = side_by_side(pool, processors, processors)[0]
    assert [len(place) for place in places] == [1, 1]


def test_a_process_that_is_killed_holds_nothing(file: Path, pool: ThreadPoolExecutor) -> None:
    """Neither its processor nor its load outlives it."""
    allowed = os.sched_getaffinity(0)
    processors = Processors(file)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holds\n"
            assert len(side_by_side(pool, processors)[0][0]) == 1
        finally:
            holder.kill()
    assert side_by_side(pool, processors)[0] == [allowed]
    with processors.loading():
        places = side_by_side(pool, *[processors] * min(len(allowed), MOST_TRIES, 30))[0]
    assert all(len(place) == 1 for place in places)


def test_without_a_file_nothing_happens() -> None:
    """Engines that were given none go on as they are."""
    allowed = os.sched_getaffinity(0)
    processors = Processors(None)
    with processors.loading(), processors.own():
        assert os.sched_getaffinity(0) == allowed


def test_a_file_that_cannot_be_made_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and calls run as without."""
    allowed = os.sched_getaffinity(0)
    (tmp_path / "file").touch()
    processors = Processors(tmp_path / "file" / "processors.lock")
    for _ in range(3):
        with processors.loading(), processors.own():
            assert os.sched_getaffinity(0) == allowed
    assert len(caplog.messages) == 1
    assert "no processors of their own" in caplog.text


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Nobody can have another file made or locked."""
    (tmp_path / "processors.lock").symlink_to(tmp_path / "elsewhere")
    with Processors(tmp_path / "processors.lock").loading():
        assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        (Plan(2, 1, decodes=True, confined=True), True),
        (Plan(2, 1, decodes=True), False),
        (Plan(3, 1, alone=True, decodes=True, confined=True), False),
    ],
)
async def test_a_call_on_one_thread_has_a_processor_beside_a_load(
    make_release: Callable[..., Release], file: Path, plan: Plan, *, kept: bool
) -> None:
    """Only a call that starts no threads is kept on one, and none while nothing loads."""
    places: list[int] = []
    backend = FakeBackend(1.0, plan=plan, sleep=lambda _: places.append(len(os.sched_getaffinity(0))))
    async with Engine(backend, EngineSettings(processors=file)) as engine:
        await serve(engine, make_release())
        places.clear()
        with Processors(file).loading():
            await engine.detect(png(0), PLAIN, CONTEXT)
        await engine.detect(png(1), PLAIN, CONTEXT)
    everywhere = len(os.sched_getaffinity(0))
    assert places == [1 if kept else everywhere, everywhere]


def test_half_of_the_processors_load_at_once(
    file: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more waits until another has ended, in this process or elsewhere; on one processor there is one turn."""
    for processors, turns in ((1, 1), (2, 1), (5, 2), (8, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=processors: set(range(count)))
        with contextlib.ExitStack() as others:
            for _ in range(turns - 1):
                others.enter_context(Processors(file).loading())
            with Processors(file).loading():
                late = pool.submit(_begin, Processors(file))
                with pytest.raises(TimeoutError):
                    late.result(0.1)
            assert late.result(WAIT_S) == "began"


def _begin(processors: Processors) -> str:
    with processors.loading():
        return "began"


def test_a_load_that_hangs_keeps_no_other_from_loading(file: Path) -> None:
    """It is waited for so long, by a clock that a test moves, and no longer."""
    now = [0.0]
    waited: list[float] = []

    class Clocked(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0.0
            waited.append(timeout or 0.0)
            return False

    with contextlib.ExitStack() as others:
        for _ in range(max(1, len(os.sched_getaffinity(0)) // 2)):
            others.enter_context(Processors(file).loading())
        with Processors(file, clock=lambda: now[0]).loading(Clocked()):
            assert sum(waited) == pytest.approx(TURN_DEADLINE_S, abs=0.1)


def test_a_file_system_without_locks_costs_no_wait(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody can lock nobody waits for; calls run where they are put."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "fcntl", refuse)
    allowed = os.sched_getaffinity(0)
    waits = threading.Event()
    monkeypatch.setattr(waits, "wait", lambda _: pytest.fail("waited"))
    processors = Processors(file)
    with processors.loading(waits), processors.own():
        assert os.sched_getaffinity(0) == allowed


async def test_an_engine_says_when_it_loads_beside_answers(
    make_release: Callable[..., Release], file: Path, pool: ThreadPoolExecutor
) -> None:
    """The lanes of every engine hear of a successor that is prepared, and not of the first release."""
    heard: list[int] = []
    elsewhere = Processors(file)

    def load(seconds: float) -> None:
        if seconds:
            heard.append(len(side_by_side(pool, elsewhere)[0][0]))

    async with Engine(FakeBackend(load_time_s=1.0, sleep=load), EngineSettings(processors=file)) as engine:
        await serve(engine, make_release("a"))
        await engine.prepare(make_release("b"))
    assert heard == [len(os.sched_getaffinity(0)), 1]


@pytest.mark.parametrize("ending", ["the load ends", "the engine closes"])
async def test_a_version_is_freed_in_turn(make_release: Callable[..., Release], file: Path, ending: str) -> None:
    """All replicas free theirs after the same swap; a replica that ends waits for nobody."""
    backend = FakeBackend()
    async with Engine(backend, EngineSettings(processors=file)) as engine:
        for generation, letter in enumerate("ab", 1):
            await serve(engine, make_release(letter), generation)
        await engine.prepare(make_release("c"))
        with contextlib.ExitStack() as others:
            for _ in range(max(1, len(os.sched_getaffinity(0)) // 2)):
                others.enter_context(Processors(file).loading())
            first = backend.sessions[0]
            freed = threading.Event()
            first.close = freed.set
            engine.flip("c" * 64, 3)
            assert not await asyncio.to_thread(freed.wait, 0.1)
            if ending == "the engine closes":
                await asyncio.wait_for(engine.close(), TURN_DEADLINE_S / 2)
        assert await asyncio.to_thread(freed.wait, WAIT_S)
