"""A candidate's pace beside the serving release's: measured in turns, never in a live image's way."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, Gate, png, serve

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.pace import LEAST_ROUNDS, LOOKS, MOST_ROUNDS, ROUNDS_S
from models.errors import BackendError
from models.types import Detections, GoldenImage

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import AsyncIterator, Callable

    from models.engine.backends.fake import FakeCall
    from models.types import Release

A, B = "a" * 64, "b" * 64


@pytest.fixture
def make(make_release: Callable[..., Release]) -> Callable[[str], Release]:
    """Return a maker of releases with two golden images."""
    golden = tuple(GoldenImage(f"{seed}.png", png(seed), Detections.empty()) for seed in (1, 2))
    return lambda letter: make_release(letter, golden=golden)


async def test_both_are_timed_on_the_same_images_in_turns(make: Callable[[str], Release]) -> None:
    """As many calls of each, one after the other, and the slower one is seen to be slower."""
    backend = FakeBackend(service_time_s=0.001)
    async with Engine(backend, EngineSettings(threads=2)) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        backend.sleep = lambda _: time.sleep(0.02 if backend.calls[-1].digest == B else 0.001)
        backend.calls.clear()
        found = await engine.golden_ms(B)
        assert found is not None
        assert found[0] > 2 * found[1] > 0.0
        order = [call.digest for call in backend.calls]
        assert LEAST_ROUNDS <= len(order) / 2 <= MOST_ROUNDS * (2**LOOKS - 1)
        assert order == [B, A] * (len(order) // 2)


async def test_the_comparison_gives_way(make: Callable[[str], Release], monkeypatch: pytest.MonkeyPatch) -> None:
    """Live images that arrive meanwhile go first: both releases run on one thread that has stepped back."""
    lowered: list[str] = []
    monkeypatch.setattr("models.engine.pace.give_way", lambda: lowered.append(threading.current_thread().name))
    ran: list[str] = []
    backend = FakeBackend(service_time_s=0.001, sleep=lambda _: ran.append(threading.current_thread().name))
    async with Engine(backend, EngineSettings(threads=2)) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        ran.clear()
        backend.sleep = lambda seconds: (ran.append(threading.current_thread().name), time.sleep(seconds))
        assert await engine.golden_ms(B) is not None
    assert len(lowered) == 1
    assert set(ran) == set(lowered)


async def test_with_nothing_to_compare_there_is_no_measurement(make: Callable[[str], Release]) -> None:
    """The first release, what serves itself, what is not loaded, and a release without a golden image."""
    async with Engine(FakeBackend(), EngineSettings(threads=2)) as engine:
        await engine.prepare(make("a"))
        assert await engine.golden_ms(A) is None
        engine.flip(A, 1)
        assert await engine.golden_ms(A) is None
        assert await engine.golden_ms(B) is None


async def test_a_failing_candidate_is_not_measured_and_gives_its_lane_back(make: Callable[[str], Release]) -> None:
    """It is for the trial to judge errors; the next live image finds the lane free."""
    backend = FakeBackend()
    async with Engine(backend, EngineSettings(threads=2)) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        backend.infer_error = BackendError("no")
        assert await engine.golden_ms(B) is None
        backend.infer_error = None
        await engine.detect(png(1), PLAIN, CONTEXT)


async def test_a_busy_replica_measures_nothing_and_is_not_disturbed(make: Callable[[str], Release]) -> None:
    """No worker is idle for as long as the measurement waits: it gives up, and the live image ends as it would."""
    gate = Gate()
    backend = FakeBackend(service_time_s=0.001, sleep=gate)
    async with Engine(backend, EngineSettings(threads=2)) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        gate.shut()
        live = asyncio.create_task(engine.detect(png(1), PLAIN, CONTEXT))
        await gate.entered()
        assert await engine.golden_ms(B) is None
        gate.open.set()
        assert (await live).release.digest == A


async def test_cancelling_keeps_the_lane_until_the_call_has_ended(make: Callable[[str], Release]) -> None:
    """A live image that comes at that moment waits for the lane instead of meeting it in use."""
    gate = Gate()
    backend = FakeBackend(service_time_s=0.001, sleep=gate)
    async with Engine(backend, EngineSettings(threads=2)) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        gate.shut()
        measuring = asyncio.create_task(engine.golden_ms(B))
        await gate.entered()
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        live = asyncio.create_task(engine.detect(png(1), PLAIN, CONTEXT))
        gate.open.set()
        assert (await live).release.digest == A


class Machine:
    """A clock that moves only while a network runs: as long as that call takes here."""

    def __init__(self) -> None:
        """Both networks take 10 ms, whatever else goes on."""
        self.now = 0.0
        self.backend = FakeBackend(service_time_s=0.001, sleep=self._spend, plan=Plan(2, 1, alone=True, decodes=True))
        self.takes: Callable[[str], float] = lambda _: 0.01

    @property
    def calls(self) -> deque[FakeCall]:
        """Return the calls so far."""
        return self.backend.calls

    def _spend(self, seconds: float) -> None:
        if seconds:
            self.now += self.takes(self.calls[-1].digest)


@pytest.fixture
async def measured(make: Callable[[str], Release]) -> AsyncIterator[tuple[Engine, Machine]]:
    """Return an engine in which release a serves and b is prepared, and the machine that it runs on."""
    machine = Machine()
    async with Engine(machine.backend, EngineSettings(threads=2), clock=lambda: machine.now) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        machine.calls.clear()
        yield engine, machine


def crowded(seed: int, slower: float) -> Callable[[str], float]:
    """Return what calls take where half of them are held up, by up to four times; ``slower``: what b takes more."""
    chance = random.Random(seed)  # noqa: S311 - noise, no secret

    def takes(digest: str) -> float:
        held_up = chance.uniform(1.0, 4.0) if chance.random() < 0.5 else chance.uniform(1.0, 1.1)
        return 0.01 * held_up * (slower if digest == B else 1.0)

    return takes


async def test_noise_refuses_no_equal_network_and_passes_no_slower_one(measured: tuple[Engine, Machine]) -> None:
    """On a crowded machine, 25 times each: equal stays below 1.5, and 3 times as slow above 2."""
    engine, machine = measured
    for seed in range(25):
        for slower, low, high in ((1.0, 0.5, 1.5), (3.0, 2.0, 4.5)):
            machine.takes = crowded(seed, slower)
            found = await engine.golden_ms(B)
            assert found is not None
            assert low < found[0] / found[1] < high, (seed, slower)


@pytest.mark.parametrize("disturbed", [0, 1, 2])
async def test_only_a_candidate_that_looks_slow_is_looked_at_again(
    measured: tuple[Engine, Machine], disturbed: int
) -> None:
    """For twice as long each time, until it was fast once."""
    engine, machine = measured
    ends = [2 * MOST_ROUNDS * (2**look - 1) for look in range(LOOKS)]
    machine.takes = lambda digest: 0.001 * (3.0 if digest == B and len(machine.calls) <= ends[disturbed] else 1.0)
    found = await engine.golden_ms(B)
    assert found == pytest.approx((1.0, 1.0))
    assert len(machine.calls) == 2 * MOST_ROUNDS * (2 ** (disturbed + 1) - 1)


async def test_a_candidate_that_is_slow_in_every_look_is_called_slow(measured: tuple[Engine, Machine]) -> None:
    """After the last look, with what it takes when nothing disturbs it."""
    engine, machine = measured
    machine.takes = lambda digest: 0.001 * (2.4 if digest == B else 1.0)
    assert await engine.golden_ms(B) == pytest.approx((2.4, 1.0))
    assert len(machine.calls) == 2 * MOST_ROUNDS * (2**LOOKS - 1)


async def test_what_is_slow_within_the_doubt_is_looked_at_once(make: Callable[[str], Release]) -> None:
    """The gate that allows twice as long lets it pass, and the rollout goes on."""
    machine = Machine()
    async with Engine(machine.backend, EngineSettings(threads=2, doubt=1.5), clock=lambda: machine.now) as engine:
        await serve(engine, make("a"))
        await engine.prepare(make("b"))
        for slower, looks in ((1.45, 1), (1.55, LOOKS)):
            machine.calls.clear()
            machine.takes = lambda digest, slower=slower: 0.001 * (slower if digest == B else 1.0)
            assert await engine.golden_ms(B) == pytest.approx((slower, 1.0))
            assert len(machine.calls) == 2 * MOST_ROUNDS * (2**looks - 1)


async def test_the_looks_of_a_slow_network_end_in_time(measured: tuple[Engine, Machine]) -> None:
    """A rollout waits for them: each is twice as long as the one before, and ends with the round that had begun."""
    engine, machine = measured
    machine.takes = lambda digest: 0.1 * (3.0 if digest == B else 1.0)
    begun = machine.now
    assert await engine.golden_ms(B) == pytest.approx((300.0, 100.0))
    assert machine.now - begun < ROUNDS_S * (2**LOOKS - 1) + LOOKS * LEAST_ROUNDS * 0.4


async def test_what_is_as_fast_costs_a_rollout_an_eighth_of_a_second(measured: tuple[Engine, Machine]) -> None:
    """One look, three rounds at least, of networks as a CPU runs them: a promotion waits for little beyond its load."""
    engine, machine = measured
    machine.takes = lambda _: 0.018
    begun = machine.now
    assert await engine.golden_ms(B) == pytest.approx((18.0, 18.0))
    assert len(machine.calls) >= 2 * LEAST_ROUNDS
    assert machine.now - begun <= 0.125 + 2 * 0.018


async def test_neither_is_timed_as_an_image_that_is_alone(measured: tuple[Engine, Machine]) -> None:
    """All threads, or a form for them, might be there for one of the two only."""
    engine, machine = measured
    assert await engine.golden_ms(B) is not None
    assert {call.alone for call in machine.calls} == {False}
