"""The engine end to end, on the fake backend: right answers, and an error of its own for all else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, Gate, equal, expected, png, queue_of, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.observe import NullObserver
from models.errors import (
    BackendError,
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    ReleaseFaultError,
    UnavailableError,
)
from models.types import DetectOptions, GoldenImage, RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Answer, Release


@pytest.mark.parametrize("head", ["end2end", "raw"])
async def test_an_answer_is_complete(way: Callable, make_release: Callable[..., Release], head: str) -> None:
    """Boxes, shape, provenance, thresholds and timings all belong to the one release."""
    release = make_release(head=head, version="7")
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, release, 3)
        answer = await engine.detect(png(1, 30, 50), PLAIN, CONTEXT)
    assert equal(answer.detections, expected(release, png(1, 30, 50)))
    assert len(answer.detections) > 0
    assert (answer.shape, answer.release, answer.generation) == ((30, 50), release.ident, 3)
    assert (answer.backend, answer.names, answer.thresholds) == ("fake", release.contract.names, release.thresholds)
    times = answer.timings
    assert min(times.decode_ms, times.infer_ms, times.post_ms) > 0
    assert times.queue_ms >= 0


@settings(max_examples=25, deadline=None)
@given(
    company=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([(48, 64), (64, 48), (20, 64), (5, 5)]), st.floats(0.3, 0.9)),
        min_size=1,
        max_size=12,
    ),
    plan=st.tuples(st.integers(1, 3), st.integers(1, 5)),
)
def test_company_changes_nothing(
    way: Callable, make_release: Callable[..., Release], company: list, plan: tuple
) -> None:
    """Every image gets the answer it gets alone, bit for bit, in any mix of images, shapes, options and lanes."""
    release = make_release(head="raw")

    async def scene() -> list[Answer]:
        async with Engine(FakeBackend(plan=way(*plan))) as engine:
            await serve(engine, release)
            return await asyncio.gather(
                *(engine.detect(png(s, *size), DetectOptions(conf=conf), CONTEXT) for s, size, conf in company)
            )

    for answer, (seed, size, conf) in zip(asyncio.run(scene()), company, strict=True):
        assert equal(answer.detections, expected(release, png(seed, *size), DetectOptions(conf=conf)))
        assert answer.thresholds.conf == conf


async def test_options_are_obeyed(way: Callable, make_release: Callable[..., Release]) -> None:
    """Confidence, count and classes narrow the answer."""
    release = make_release()
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, release)
        everything = (await engine.detect(png(0), PLAIN, CONTEXT)).detections
        one = (await engine.detect(png(0), DetectOptions(max_det=1), CONTEXT)).detections
        assert one.scores.tolist() == everything.scores[:1].tolist()
        none = (await engine.detect(png(0), DetectOptions(conf=1.0), CONTEXT)).detections
        assert len(none) == 0
        wanted = int(everything.classes[0])
        some = (await engine.detect(png(0), DetectOptions(classes=frozenset({wanted})), CONTEXT)).detections
        assert set(some.classes.tolist()) == {wanted}
        with pytest.raises(InvalidOptionError, match="ids 0 to 2"):
            await engine.detect(png(0), DetectOptions(classes=frozenset({3})), CONTEXT)


async def test_bad_images_hurt_nobody_else(way: Callable, make_release: Callable[..., Release]) -> None:
    """Each gets its own error; the good ones beside and after them are answered."""
    async with Engine(FakeBackend(plan=way(1, 8)), EngineSettings(max_side=100)) as engine:
        await serve(engine, make_release())
        answers = await asyncio.gather(
            *(engine.detect(d, PLAIN, CONTEXT) for d in (png(0), b"", b"text", png(1)[:99], png(0, 10, 101), png(1))),
            return_exceptions=True,
        )
        kinds = [type(answer).__name__ for answer in answers]
        assert kinds[1:5] == [
            InvalidImageError.__name__,
            "UnsupportedImageError",
            InvalidImageError.__name__,
            ImageTooLargeError.__name__,
        ]
        assert kinds[0] == kinds[5] == "Answer"


async def test_without_a_release_it_is_unavailable(way: Callable) -> None:
    """Nothing is decoded before something can answer."""
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        assert (engine.serving, engine.previous, engine.candidate, engine.generation) == (None, None, None, 0)
        for call in (engine.detect(png(0), PLAIN, CONTEXT), engine.check_sight()):
            with pytest.raises(UnavailableError):
                await call
        with pytest.raises(ReleaseFaultError):
            engine.flip("a" * 64, 1)


async def test_a_full_engine_refuses_and_recovers(way: Callable, make_release: Callable[..., Release]) -> None:
    """Beyond max_queue waiting images the next is refused at once; the waiting ones are answered."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=way(1, 1), sleep=gate)
    async with Engine(backend, EngineSettings(max_queue=2)) as engine:
        await serve(engine, make_release())
        gate.shut()
        tasks = [asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))]
        await gate.entered()
        for _ in range(2):
            tasks.append(asyncio.create_task(engine.detect(png(1), PLAIN, CONTEXT)))
            await queue_of(engine, len(tasks) - 1)
        with pytest.raises(OverloadedError, match="limit is 2"):
            await engine.detect(png(2), PLAIN, CONTEXT)
        assert (engine.queued, engine.running) == (2, 1)
        gate.open.set()
        assert len(await asyncio.gather(*tasks)) == 3
        assert (engine.queued, engine.running) == (0, 0)


async def test_a_passed_deadline_costs_no_decoding(way: Callable, make_release: Callable[..., Release]) -> None:
    """Nothing is done for a request that nobody waits for."""
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, make_release())
        calls = len(engine._backend.calls)
        with pytest.raises(DeadlineExceededError):
            await engine.detect(png(0), PLAIN, RequestContext("late", deadline=0.0))
        assert len(engine._backend.calls) == calls


async def test_cancelled_images_never_run(way: Callable, make_release: Callable[..., Release]) -> None:
    """A client that went away while waiting leaves the queue."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=way(1, 8), sleep=gate)
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        gate.shut()
        first = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await gate.entered()
        calls = len(backend.calls)
        waiting = [asyncio.create_task(engine.detect(png(s), PLAIN, CONTEXT)) for s in range(3)]
        await queue_of(engine, 3)
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        assert engine.queued == 2
        gate.open.set()
        await asyncio.gather(first, waiting[0], waiting[2])
        assert sum(call.size for call in list(backend.calls)[calls:]) == 2


async def test_weights_damaged_behind_the_back_are_an_error(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """NaN in a serving release is never answered as zero boxes."""
    backend = FakeBackend(plan=way(1, 8))
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        backend.finite = False
        with pytest.raises(BackendError, match="NaN"):
            await engine.detect(png(0), PLAIN, CONTEXT)


async def test_check_sight_finds_blindness(way: Callable, make_release: Callable[..., Release]) -> None:
    """The canary passes while the release sees and fails when it goes blind."""
    backend = FakeBackend(plan=way(1, 8))
    plain = make_release()
    golden = (GoldenImage("one.png", png(5), expected(plain, png(5))),)
    async with Engine(backend) as engine:
        await serve(engine, make_release(golden=golden))
        await engine.check_sight()
        backend.blind = True
        with pytest.raises(BackendError, match="sees nothing"):
            await engine.check_sight()


class Counting(NullObserver):
    """Writes every event down."""

    def __init__(self) -> None:
        """Start empty."""
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> object:
        """Note the event's name."""
        if name in {"answered", "refused", "batch_started", "batch_finished", "prepared", "flipped", "freed"}:
            self.events.append(name)
        return super().__getattribute__(name)


async def test_the_observer_hears_of_everything(way: Callable, make_release: Callable[..., Release]) -> None:
    """Every event of the request and the weights flow is told once."""
    observer = Counting()
    async with Engine(FakeBackend(plan=way(1, 8)), observer=observer) as engine:
        await serve(engine, make_release())
        await engine.detect(png(0), PLAIN, CONTEXT)
        with pytest.raises(InvalidImageError):
            await engine.detect(b"", PLAIN, CONTEXT)
    batch = ["batch_started", "batch_finished"]
    refusal = [*batch, "refused"] if way(1, 8).decodes else ["refused"]
    assert observer.events == ["prepared", "flipped", *batch, "answered", *refusal, "freed"]


async def test_the_door_reckons_with_the_threads_that_work(
    make_release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three lanes that decode, one only waits for its turn: an image's wait is shared by two."""
    async with Engine(FakeBackend(plan=Plan(3, 1, decodes=True)), EngineSettings()) as engine:
        await serve(engine, make_release())
        workers: list[int] = []
        monkeypatch.setattr(engine._path._door, "check", lambda *given: workers.append(given[-1]))
        await engine.detect(png(1), PLAIN, CONTEXT)
    assert workers == [2]


async def test_the_work_inside_is_what_waits_and_what_runs(way: Callable, make_release: Callable[..., Release]) -> None:
    """A batch of two that runs and one that waits are three images; nothing is inside once they are answered."""
    gate = Gate()
    async with Engine(FakeBackend(0.01, plan=way(1, 2), sleep=gate)) as engine:
        await serve(engine, make_release())
        assert (engine.inside, engine.images_a_second, engine.image_s) == (0, 0.0, 0.0)
        gate.shut()
        asked = [asyncio.create_task(engine.detect(png(seed), PLAIN, CONTEXT)) for seed in range(3)]
        await gate.entered()
        for _ in range(2000):
            if engine.queued + engine.running < len(asked) and engine.inside == len(asked):
                break
            await asyncio.sleep(0.005)
        inside = engine.inside
        gate.open.set()
        await asyncio.gather(*asked)
        for seed in range(4):
            await engine.detect(png(seed), PLAIN, CONTEXT)
        assert (inside, engine.inside) == (3, 0)
        assert engine.images_a_second > 0.0
        assert engine.image_s > 0.0


async def test_an_answer_tells_its_course(way: Callable, make_release: Callable[..., Release]) -> None:
    """Every stage in its order, and the one batch that several images of a tick shared."""
    async with Engine(FakeBackend(plan=way(1, 8))) as engine:
        await serve(engine, make_release())
        answers = await asyncio.gather(*(engine.detect(png(seed), PLAIN, CONTEXT) for seed in range(6)))
        lanes_decode = engine._path._decoded_by_lanes()
    sizes: dict[int, list[int]] = {}
    for answer in answers:
        course = answer.course
        assert course is not None
        first, second = (course.queue, course.decode) if lanes_decode else (course.decode, course.queue)
        moments = [*first, *second, course.batch.begun, course.batch.ended, *course.post]
        assert moments == sorted(moments)
        assert answer.timings.infer_ms == pytest.approx(1e3 * (course.batch.ended - course.batch.begun))
        assert answer.timings.post_ms == pytest.approx(1e3 * (course.post.ended - course.post.begun))
        sizes.setdefault(course.batch.number, []).append(course.batch.size)
    assert all(len(each) == each[0] == max(each) for each in sizes.values())
    assert course.batch.lane == 0
