"""What a lane does besides inference: decode where it should, nothing in vain, and tell what it ran for warming."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, Gate, png, queue_of, serve

from models.engine import detect as detect_module
from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.engine.forms import EARNED_AFTER, FormCache
from models.engine.observe import NullObserver
from models.errors import (
    BackendError,
    DeadlineExceededError,
    ImageTooLargeError,
    InvalidImageError,
    OverloadedError,
    UnavailableError,
)
from models.types import RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engine.backends.backend import Shape
    from models.engine.forms import Form
    from models.types import Release, ReleaseId

LANES = Plan(3, 1, alone=True, decodes=True)
ONE_LANE = Plan(1, 1, alone=True, decodes=True)


class Batches(NullObserver):
    """Remembers how batches ended and what was compiled."""

    def __init__(self) -> None:
        """Start empty."""
        self.errors: list[BaseException | None] = []
        self.compiled_shapes: list[Shape] = []
        self.happened = asyncio.Event()

    def batch_finished(self, release: ReleaseId, size: int, seconds: float, error: BaseException | None) -> None:
        """Write it down."""
        assert (release.model, seconds >= 0, size) == ("till", True, 1)
        self.errors.append(error)

    def compiled(self, release: ReleaseId, shape: Shape, error: BaseException | None) -> None:
        """Write it down."""
        assert (release.model, error) == ("till", None)
        self.compiled_shapes.append(shape)
        self.happened.set()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the threads that have decoded, in order."""
    names: list[str] = []
    examine = detect_module.examine

    def noted(*arguments: object) -> object:
        names.append(threading.current_thread().name)
        return examine(*arguments)

    monkeypatch.setattr(detect_module, "examine", noted)
    return names


async def test_who_decodes_follows_the_plan(make_release: Callable, way: Callable, decoded: list[str]) -> None:
    """The lanes decode where the plan says so, and only there."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        await serve(engine, make_release())
        await asyncio.gather(*(engine.detect(png(seed), PLAIN, CONTEXT) for seed in range(6)))
    kinds = {name.split("_")[0] for name in decoded}
    assert (len(decoded), kinds) == (6, {"lane" if way(1, 1).decodes else "decode"})


async def test_no_more_threads_decode_than_detect(make_release: Callable[..., Release], decoded: list[str]) -> None:
    """Three lanes run on two threads: one always has its work at hand without taking a core from the others."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=LANES, sleep=gate)
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        gate.shut()
        tasks = [asyncio.create_task(engine.detect(png(seed), PLAIN, CONTEXT)) for seed in range(5)]
        await queue_of(engine, 2)
        await gate.entered()
        assert engine.running == 3
        gate.open.set()
        await asyncio.gather(*tasks)
    assert len(set(decoded)) <= 2
    assert {call.lane for call in backend.calls} <= {0, 1, 2}


async def test_what_waits_is_not_decoded(make_release: Callable[..., Release], decoded: list[str]) -> None:
    """Images whose client has gone, or whose time is up, before a thread came to them cost nothing."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=LANES, sleep=gate)
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        gate.shut()
        busy = [asyncio.create_task(engine.detect(png(seed), PLAIN, CONTEXT)) for seed in range(2)]
        await gate.entered()
        soon = RequestContext("soon", deadline=engine._clock() + 0.05)
        gone = [asyncio.create_task(engine.detect(png(seed), PLAIN, CONTEXT)) for seed in (2, 3)]
        late = asyncio.create_task(engine.detect(png(4), PLAIN, soon))
        await queue_of(engine, 2)
        assert engine.running == 3  # the third lane waits for a thread
        for task in gone:
            task.cancel()
        with pytest.raises(DeadlineExceededError):
            await late
        await asyncio.wait(gone)
        assert engine.queued == 0
        gate.open.set()
        await asyncio.gather(*busy)
        await engine.detect(png(5), PLAIN, CONTEXT)
    assert len(decoded) == 3


async def test_a_deadline_that_passes_on_the_way_to_a_thread_costs_no_decoding(
    make_release: Callable[..., Release], decoded: list[str]
) -> None:
    """A lane looks at the clock itself before it decodes: the loop may be late to say."""
    now = 0.0
    async with Engine(FakeBackend(plan=LANES), clock=lambda: now) as engine:
        await serve(engine, make_release())
        run = engine._batcher._run

        def lately(*arguments: object) -> object:
            nonlocal now
            now = 10.0
            return run(*arguments)

        engine._batcher._run = lately
        with pytest.raises(DeadlineExceededError):
            await engine.detect(png(0), PLAIN, RequestContext("late", deadline=5.0))
    assert decoded == []


async def test_a_full_queue_is_not_decoded(make_release: Callable[..., Release], decoded: list[str]) -> None:
    """Refusing costs no decoding, nor do images that wait until they are refused."""
    gate = Gate()
    async with Engine(FakeBackend(1.0, plan=ONE_LANE, sleep=gate), EngineSettings(max_queue=2)) as engine:
        await serve(engine, make_release())
        gate.shut()
        first = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await gate.entered()
        waiting = [asyncio.create_task(engine.detect(png(seed), PLAIN, CONTEXT)) for seed in (1, 2)]
        await queue_of(engine, 2)
        with pytest.raises(OverloadedError, match="limit is 2"):
            await engine.detect(png(3), PLAIN, CONTEXT)
        engine.fail_all("the fleet is in doubt")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [UnavailableError] * 2
        gate.open.set()
        await first
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"", InvalidImageError), (png(1)[:99], InvalidImageError), (png(0, 10, 101), ImageTooLargeError)],
)
async def test_a_bad_image_is_no_failure_of_the_detector(
    make_release: Callable[..., Release], way: Callable, data: bytes, kind: type
) -> None:
    """Its client hears what is wrong with it; who counts failing batches hears of none, and no shape is counted."""
    observer = Batches()
    async with Engine(FakeBackend(plan=way(2, 4)), EngineSettings(max_side=100), observer=observer) as engine:
        await serve(engine, make_release())
        counted = dict(engine._residents._preparer.forms._seen)
        with pytest.raises(kind):
            await engine.detect(data, PLAIN, CONTEXT)
        assert engine._residents._preparer.forms._seen == counted
    assert set(observer.errors) <= {None}


@pytest.mark.parametrize("error", [BackendError("broken"), ValueError("a bug"), MemoryError()])
async def test_a_failing_detector_is_a_failed_batch(
    make_release: Callable[..., Release], way: Callable, error: Exception
) -> None:
    """Whoever decodes, a runtime that fails is counted as such, answered as such, and the next image is served."""
    backend, observer = FakeBackend(plan=way(2, 4)), Batches()
    async with Engine(backend, observer=observer) as engine:
        await serve(engine, make_release())
        backend.infer_error = error
        with pytest.raises(BackendError):
            await engine.detect(png(0), PLAIN, CONTEXT)
        backend.infer_error = None
        await engine.detect(png(0), PLAIN, CONTEXT)
    assert observer.errors == [error, None]


async def test_one_after_the_other_runs_alone(make_release: Callable[..., Release]) -> None:
    """A lone client gets the whole machine, on the first lane; several at once do not."""
    backend = FakeBackend(plan=LANES)
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        backend.calls.clear()
        for seed in range(3):
            await engine.detect(png(seed), PLAIN, CONTEXT)
        assert [(call.lane, call.alone) for call in backend.calls] == [(0, True)] * 3
        backend.calls.clear()
        await asyncio.gather(*(engine.detect(png(seed), PLAIN, CONTEXT) for seed in range(6)))
        assert [call.alone for call in backend.calls] == [False] * 6


async def test_shapes_that_come_are_warmed(make_release: Callable[..., Release], way: Callable) -> None:
    """Whoever decodes, images count for their tensor's shape, on lanes or alone, until it has earned its form."""
    backend, observer = FakeBackend(plan=way(2, 4)), Batches()
    async with Engine(backend, observer=observer) as engine:
        await serve(engine, make_release())
        (session,) = backend.sessions
        assert (32, 64) not in session.warmed
        for _ in range(EARNED_AFTER):
            await engine.detect(png(0, 16, 64), PLAIN, CONTEXT)
        await asyncio.wait_for(observer.happened.wait(), 20)
        assert observer.compiled_shapes == [(32, 64)]
        assert (32, 64) in (session.warmed_alone if way(1, 1).alone else session.warmed)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((16, 64), (16, 64)), [((32, 64), 0), ((32, 64), 0), ((32, 64), 1)]),
        (((16, 64), (64, 64)), [((32, 64), 0), ((64, 64), 0)]),
    ],
)
async def test_lanes_that_meet_in_a_shape_earn_it_a_copy(
    make_release: Callable[..., Release],
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[tuple[int, int], ...],
    expected: list[tuple[Shape, int]],
) -> None:
    """An image that ends while another lane runs its shape counts for a second copy too; other shapes do not count."""
    noted: list[tuple[Shape, int]] = []

    def note(_: FormCache, form: Form, images: int) -> bool:
        noted.append((form.shape, form.copy))
        return images < 1

    monkeypatch.setattr(FormCache, "note", note)
    gate = Gate()
    async with Engine(FakeBackend(1.0, plan=LANES, sleep=gate)) as engine:
        await serve(engine, make_release())
        gate.shut()
        tasks = [asyncio.create_task(engine.detect(png(0, *size), PLAIN, CONTEXT)) for size in sizes]
        for _ in range(2000):
            if [job.shape is None for job in engine._batcher.running_jobs()] == [False, False]:
                break
            await asyncio.sleep(0.005)
        gate.open.set()
        await asyncio.gather(*tasks)
    assert sorted(noted) == expected


async def test_an_image_that_had_all_threads_earns_no_copy(
    make_release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another of its shape that came meanwhile runs on a lane; the form of a lone call is one."""
    noted: list[tuple[bool, int]] = []

    def note(_: FormCache, form: Form, images: int) -> bool:
        noted.append((form.alone, form.copy))
        return images < 1

    monkeypatch.setattr(FormCache, "note", note)
    doors: list[threading.Event] = []

    def sleep(_: float) -> None:
        if serving:
            doors.append(threading.Event())
            assert doors[-1].wait(20)

    serving = False
    async with Engine(FakeBackend(1.0, plan=LANES, sleep=sleep)) as engine:
        await serve(engine, make_release())
        serving = True
        lone = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await until(lambda: len(doors) == 1)
        beside = asyncio.create_task(engine.detect(png(1), PLAIN, CONTEXT))
        await until(lambda: len(doors) == 2)
        doors[0].set()
        await lone
        assert noted == [(True, 0)]
        doors[1].set()
        await beside
    assert noted == [(True, 0), (False, 0)]


async def until(true: Callable[[], bool]) -> None:
    """Wait until ``true``."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came true")
