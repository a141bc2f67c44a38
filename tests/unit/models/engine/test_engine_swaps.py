"""Releases move under an engine at work: every image is answered by one of them, or told why not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, Gate, equal, expected, png, queue_of, serve

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.observe import NullObserver
from models.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release


async def test_swaps_under_load_fail_nothing(way: Callable, make_release: Callable[..., Release]) -> None:
    """Under twenty swaps every request of eight clients is answered by one version, none older than was seen."""
    backend = FakeBackend(plan=way(2, 4))
    releases = {letter * 64: make_release(letter, version=letter) for letter in "abcdef"}
    pictures = [png(seed) for seed in range(4)]
    truth = {(d, n): expected(r, picture) for d, r in releases.items() for n, picture in enumerate(pictures)}
    done = False
    newest = count = 0

    async def client(number: int) -> None:
        nonlocal newest, count
        while not done:
            floor, which = newest, (number + count) % 4
            answer = await engine.detect(pictures[which], PLAIN, CONTEXT)
            assert equal(answer.detections, truth[answer.release.digest, which])
            assert answer.release.version * 64 == answer.release.digest
            assert answer.generation >= floor
            newest = max(newest, answer.generation)
            count += 1

    async with Engine(backend) as engine:
        await serve(engine, releases["a" * 64])
        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for generation in range(2, 22):
            release = releases["abcdef"[generation % 6] * 64]
            await engine.prepare(release)
            engine.hold()
            engine.flip(release.digest, generation)
            engine.resume()
            # At most eight that ran already are still answered by the version before.
            seen = count
            while count < seen + 16:
                await asyncio.sleep(0)
                assert not any(task.done() and task.exception() for task in clients)
        done = True
        await asyncio.gather(*clients)
        await engine.prepare(make_release("9"))
        engine.discard("9" * 64)
    assert all(session.closed for session in backend.sessions)
    assert newest == 21


async def test_what_waits_during_a_hold_is_answered_by_the_new_release(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """Under a hold nothing starts; after flip and resume the queue gets the new version."""
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, make_release("a"))
        await engine.prepare(make_release("b"))
        assert engine.candidate.digest[0] == "b"
        engine.hold()
        tasks = [asyncio.create_task(engine.detect(png(s), PLAIN, CONTEXT)) for s in range(5)]
        await queue_of(engine, 5)
        assert (engine.held, engine.running) == (True, 0)
        engine.flip("b" * 64, 2)
        engine.resume()
        answers = await asyncio.gather(*tasks)
        assert {(answer.release.digest[0], answer.generation) for answer in answers} == {("b", 2)}
        assert (engine.serving.digest[0], engine.previous.digest[0], engine.candidate) == ("b", "a", None)


async def test_the_observer_hears_how_long_nothing_could_start(make_release: Callable[..., Release]) -> None:
    """From the first hold to the resume; holding without a release, as at the start, is no swap."""
    held: list[float] = []
    observer, now = NullObserver(), 0.0
    observer.held = held.append  # type: ignore[method-assign]
    async with Engine(FakeBackend(), observer=observer, clock=lambda: now) as engine:
        engine.hold()
        await serve(engine, make_release("a"))
        engine.resume()
        engine.resume()
        assert held == []
        engine.hold()
        now = 1.0
        engine.hold()
        now = 1.5
        engine.resume()
    assert held == [1.5]


async def test_a_flip_to_another_geometry_remakes_the_tensors(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """Images that wait with tensors for the old size are answered by a release of another size, however full it is."""
    old, new = make_release("a", imgsz=64), make_release("b", imgsz=128)
    async with Engine(FakeBackend(plan=way(1, 8)), EngineSettings(max_queue=5)) as engine:
        await serve(engine, old)
        await engine.prepare(new)
        engine.hold()
        tasks = [asyncio.create_task(engine.detect(png(s), PLAIN, CONTEXT)) for s in range(5)]
        await queue_of(engine, 5)
        engine.flip(new.digest, 2)
        engine.resume()
        for seed, answer in enumerate(await asyncio.gather(*tasks)):
            assert answer.release.digest == new.digest
            assert equal(answer.detections, expected(new, png(seed)))


async def test_fail_all_refuses_until_lifted(way: Callable, make_release: Callable[..., Release]) -> None:
    """In doubt every request gets the reason; afterwards answers come again."""
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, make_release())
        engine.hold()
        waiting = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await queue_of(engine, 1)
        engine.fail_all("the fleet is in doubt")
        for refused in (waiting, engine.detect(png(0), PLAIN, CONTEXT)):
            with pytest.raises(UnavailableError, match="in doubt"):
                await refused
        engine.fail_all(None)
        engine.resume()
        assert len((await engine.detect(png(0), PLAIN, CONTEXT)).detections) > 0


async def test_closing_ends_everything(way: Callable, make_release: Callable[..., Release]) -> None:
    """Waiting images get UnavailableError, the running one its answer, all sessions are closed, and so it stays."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=way(1, 1), sleep=gate)
    async with Engine(backend) as engine:
        await serve(engine, make_release("a"))
        await engine.prepare(make_release("b"))
        gate.shut()
        first = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await gate.entered()
        second = asyncio.create_task(engine.detect(png(1), PLAIN, CONTEXT))
        await queue_of(engine, 1)
        closing = asyncio.create_task(engine.close())
        with pytest.raises(UnavailableError):
            await second
        gate.open.set()
        assert (await first).release.digest[0] == "a"
        await closing
        assert all(session.closed for session in backend.sessions)
        with pytest.raises(UnavailableError):
            await engine.detect(png(0), PLAIN, CONTEXT)
        with pytest.raises(UnavailableError):
            await engine.prepare(make_release("c"))


async def test_what_is_loaded_is_known_by_content_and_version(make_release: Callable[..., Release]) -> None:
    """The active release, the previous one and the candidate need no preparing; the same bytes under a new name do."""
    first, second, third = (make_release(letter * 64, version=letter) for letter in "abc")
    async with Engine(FakeBackend()) as engine:
        for generation, release in enumerate((first, second), start=1):
            await serve(engine, release, generation)
        await engine.prepare(third)
        assert [engine.has(each.version, each.digest) for each in (first, second, third)] == [True] * 3
        assert not engine.has("d", third.digest)
        await engine.prepare(make_release("c" * 64, version="d"))
        assert (engine.has("d", third.digest), engine.has("c", third.digest)) == (True, False)
        engine.discard(third.digest)
        assert not engine.has("d", third.digest)
