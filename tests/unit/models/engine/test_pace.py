"""A candidate's pace beside the serving release's: measured in turns, never in a live image's way."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, Gate, png, serve

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.pace import LEAST_ROUNDS, MOST_ROUNDS
from models.errors import BackendError
from models.types import Detections, GoldenImage

if TYPE_CHECKING:
    from collections.abc import Callable

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
        assert LEAST_ROUNDS <= len(order) / 2 <= MOST_ROUNDS
        assert order == [B, A] * (len(order) // 2)


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
