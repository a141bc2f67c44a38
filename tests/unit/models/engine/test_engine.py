"""The engine end to end, on the fake backend: right answers, one version each, whatever moves underneath."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.decode import decode
from models.engine.engine import Engine, EngineSettings
from models.engine.observe import NullObserver
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
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
from models.types import Detections, DetectOptions, GoldenImage, RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Answer, Release

CONTEXT = RequestContext("test", deadline=float("inf"))
PLAIN = DetectOptions()


def png(seed: int, height: int = 48, width: int = 64) -> bytes:
    """Return a random picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def expected(release: Release, data: bytes, options: DetectOptions = PLAIN) -> Detections:
    """Return what ``release`` sees in ``data`` when nothing else is going on."""
    tensor, placement = letterbox(decode(data), release.contract)
    output = FakeBackend().load(release).infer(tensor[None], 0)[0]
    return postprocess(output, placement, release.contract, options.thresholds(release.thresholds), options.classes)


def equal(one: Detections, other: Detections) -> bool:
    """Return whether two answers are the same to the last bit."""
    pairs = ((one.boxes, other.boxes), (one.scores, other.scores), (one.classes, other.classes))
    return all(np.array_equal(a, b) for a, b in pairs)


async def serve(engine: Engine, release: Release, generation: int = 1) -> None:
    """Prepare and flip."""
    await engine.prepare(release)
    engine.flip(release.digest, generation)


class Gate:
    """A sleep that lasts until the gate is opened, and says when somebody waits at it."""

    def __init__(self) -> None:
        """Start open, so that releases can be prepared."""
        self.reached, self.open = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, seconds: float) -> None:
        """Wait if there is time to spend."""
        if seconds:
            self.reached.set()
            assert self.open.wait(20)

    def shut(self) -> None:
        """Let the next call wait."""
        self.reached.clear()
        self.open.clear()

    async def entered(self) -> None:
        """Wait until a call waits."""
        assert await asyncio.to_thread(self.reached.wait, 20)


async def queue_of(engine: Engine, length: int) -> None:
    """Wait until so many images wait, decoded."""
    for _ in range(2000):
        if engine._batcher.queued == length and engine._decoding == 0:
            return
        await asyncio.to_thread(threading.Event().wait, 0.005)
    pytest.fail(f"{engine.queued} images wait instead of {length}")


@pytest.mark.parametrize("head", ["end2end", "raw"])
async def test_an_answer_is_complete(make_release: Callable[..., Release], head: str) -> None:
    """Boxes, shape, provenance, thresholds and timings all belong to the one release."""
    release = make_release(head=head, version="7")
    async with Engine(FakeBackend()) as engine:
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
    plan=st.builds(Plan, st.integers(1, 3), st.integers(1, 5)),
)
def test_company_changes_nothing(make_release: Callable[..., Release], company: list, plan: Plan) -> None:
    """Every image gets the answer it gets alone, bit for bit, in any mix of images, shapes, options and lanes."""
    release = make_release(head="raw")

    async def scene() -> list[Answer]:
        async with Engine(FakeBackend(plan=plan)) as engine:
            await serve(engine, release)
            return await asyncio.gather(
                *(engine.detect(png(s, *size), DetectOptions(conf=conf), CONTEXT) for s, size, conf in company)
            )

    for answer, (seed, size, conf) in zip(asyncio.run(scene()), company, strict=True):
        assert equal(answer.detections, expected(release, png(seed, *size), DetectOptions(conf=conf)))
        assert answer.thresholds.conf == conf


async def test_options_are_obeyed(make_release: Callable[..., Release]) -> None:
    """Confidence, count and classes narrow the answer."""
    release = make_release()
    async with Engine(FakeBackend()) as engine:
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


async def test_bad_images_hurt_nobody_else(make_release: Callable[..., Release]) -> None:
    """Each gets its own error; the good ones beside and after them are answered."""
    async with Engine(FakeBackend(), EngineSettings(max_side=100)) as engine:
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


async def test_without_a_release_it_is_unavailable() -> None:
    """Nothing is decoded before something can answer."""
    async with Engine(FakeBackend()) as engine:
        assert (engine.serving, engine.previous, engine.candidate, engine.generation) == (None, None, None, 0)
        for call in (engine.detect(png(0), PLAIN, CONTEXT), engine.check_sight()):
            with pytest.raises(UnavailableError):
                await call
        with pytest.raises(ReleaseFaultError):
            engine.flip("a" * 64, 1)


async def test_a_full_engine_refuses_and_recovers(make_release: Callable[..., Release]) -> None:
    """Beyond max_queue waiting images the next is refused at once; the waiting ones are answered."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=Plan(1, 1), sleep=gate)
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


async def test_a_passed_deadline_costs_no_decoding(make_release: Callable[..., Release]) -> None:
    """Nothing is done for a request that nobody waits for."""
    async with Engine(FakeBackend()) as engine:
        await serve(engine, make_release())
        calls = len(engine._backend.calls)
        with pytest.raises(DeadlineExceededError):
            await engine.detect(png(0), PLAIN, RequestContext("late", deadline=0.0))
        assert len(engine._backend.calls) == calls


async def test_cancelled_images_never_run(make_release: Callable[..., Release]) -> None:
    """A client that went away while waiting leaves the queue."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=Plan(1, 8), sleep=gate)
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
        assert [call.size for call in list(backend.calls)[calls:]] == [2]


async def test_swaps_under_load_fail_nothing(make_release: Callable[..., Release]) -> None:
    """Under twenty swaps every request of eight clients is answered by one version, none older than was seen."""
    backend = FakeBackend(plan=Plan(2, 4))
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
            seen = count
            await engine.prepare(release)
            engine.hold()
            engine.flip(release.digest, generation)
            engine.resume()
            while count < seen + 8:
                await asyncio.sleep(0)
                assert not any(task.done() and task.exception() for task in clients)
        done = True
        await asyncio.gather(*clients)
        await engine.prepare(make_release("9"))
        engine.discard("9" * 64)
    assert all(session.closed for session in backend.sessions)
    assert newest == 21


async def test_what_waits_during_a_hold_is_answered_by_the_new_release(make_release: Callable[..., Release]) -> None:
    """Under a hold nothing starts; after flip and resume the queue gets the new version."""
    async with Engine(FakeBackend()) as engine:
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


async def test_a_flip_to_another_geometry_remakes_the_tensors(make_release: Callable[..., Release]) -> None:
    """Images that wait with tensors for the old size are answered by a release of another size, however full it is."""
    old, new = make_release("a", imgsz=64), make_release("b", imgsz=128)
    async with Engine(FakeBackend(), EngineSettings(max_queue=5)) as engine:
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


async def test_fail_all_refuses_until_lifted(make_release: Callable[..., Release]) -> None:
    """In doubt every request gets the reason; afterwards answers come again."""
    async with Engine(FakeBackend()) as engine:
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


async def test_weights_damaged_behind_the_back_are_an_error(make_release: Callable[..., Release]) -> None:
    """NaN in a serving release is never answered as zero boxes."""
    backend = FakeBackend()
    async with Engine(backend) as engine:
        await serve(engine, make_release())
        backend.finite = False
        with pytest.raises(BackendError, match="NaN"):
            await engine.detect(png(0), PLAIN, CONTEXT)


async def test_check_sight_finds_blindness(make_release: Callable[..., Release]) -> None:
    """The canary passes while the release sees and fails when it goes blind."""
    backend = FakeBackend()
    plain = make_release()
    golden = (GoldenImage("one.png", png(5), expected(plain, png(5))),)
    async with Engine(backend) as engine:
        await serve(engine, make_release(golden=golden))
        await engine.check_sight()
        backend.blind = True
        with pytest.raises(BackendError, match="sees nothing"):
            await engine.check_sight()


async def test_closing_ends_everything(make_release: Callable[..., Release]) -> None:
    """Waiting images get UnavailableError, the running one its answer, all sessions are closed, and so it stays."""
    gate = Gate()
    backend = FakeBackend(1.0, plan=Plan(1, 1), sleep=gate)
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


async def test_the_observer_hears_of_everything(make_release: Callable[..., Release]) -> None:
    """Every event of the request and the weights flow is told once."""
    observer = Counting()
    async with Engine(FakeBackend(), observer=observer) as engine:
        await serve(engine, make_release())
        await engine.detect(png(0), PLAIN, CONTEXT)
        with pytest.raises(InvalidImageError):
            await engine.detect(b"", PLAIN, CONTEXT)
    assert observer.events == [
        "prepared", "flipped", "batch_started", "batch_finished", "answered", "refused", "freed",
    ]  # fmt: skip
