"""A candidate on trial: its canary's clients are its own until the end, its shadow is seen by nobody."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engine_scenes import CONTEXT, PLAIN, equal, expected, png, queue_of, serve
from hypothesis import given
from hypothesis import strategies as st

from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine
from models.engine.request_path import OVERRUN_S
from models.engine.trial import place
from models.errors import (
    BackendError,
    DeadlineExceededError,
    InvalidImageError,
    ReleaseFaultError,
    ReleaseRejectedError,
)
from models.evidence import Evidence
from models.types import RequestContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Answer, Release

A, B = "a" * 64, "b" * 64
CLIENTS = [f"till-{number}" for number in range(40)]
CHOSEN = next(client for client in CLIENTS if place(client, B) < 0.5)
OTHER = next(client for client in CLIENTS if place(client, B) >= 0.5)


def by(client_id: str | None) -> RequestContext:
    """Return the context of that client."""
    return replace(CONTEXT, client_id=client_id)


async def beside(engine: Engine, make_release: Callable[..., Release], **changes: object) -> tuple[Release, Release]:
    """Let version a serve under generation 1 and prepare version b; return both."""
    old, new = make_release("a", "1"), make_release("b", "2", **changes)
    await serve(engine, old)
    await engine.prepare(new)
    return old, new


async def ask_all(engine: Engine) -> dict[str, Answer]:
    """Return the answer that every client gets."""
    answers = await asyncio.gather(*(engine.detect(png(0), PLAIN, by(client)) for client in CLIENTS))
    return dict(zip(CLIENTS, answers, strict=True))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.to_thread(threading.Event().wait, 0.005)
    pytest.fail("it did not happen")


class ShadowGate:
    """A sleep that holds the shadow's thread alone, until it is opened."""

    def __init__(self) -> None:
        """Start open."""
        self.open, self.reached = threading.Event(), threading.Event()
        self.open.set()
        self.calls: list[str] = []

    def __call__(self, seconds: float) -> None:
        """Remember whose thread this is; wait if it is the shadow's."""
        if seconds:
            self.calls.append(threading.current_thread().name.partition("_")[0])
        if seconds and threading.current_thread().name.startswith("shadow"):
            self.reached.set()
            assert self.open.wait(20)


@given(key=st.text(), salt=st.text(max_size=64))
def test_a_place_is_a_place(key: str, salt: str) -> None:
    """It lies in [0, 1) and is always the same, so that every replica agrees."""
    assert 0.0 <= place(key, salt) < 1.0
    assert place(key, salt) == place(key, salt)


def test_places_are_uniform_and_a_salt_draws_anew() -> None:
    """A share of clients is about that share, and another candidate's clients are others."""
    first = {client for client in map(str, range(4000)) if place(client, A) < 0.25}
    second = {client for client in map(str, range(4000)) if place(client, B) < 0.25}
    assert 900 < len(first) < 1100
    assert 900 < len(second) < 1100
    assert 180 < len(first & second) < 320


async def test_a_canary_answers_its_clients(way: Callable, make_release: Callable[..., Release]) -> None:
    """Those below the share get the candidate's whole answer under its generation; all others notice nothing."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        old, new = await beside(engine, make_release, imgsz=96)
        engine.begin_trial(B, 2, canary=0.5, shadow=0.0)
        answers = await ask_all(engine)
        for client, answer in answers.items():
            release, generation = (new, 2) if place(client, B) < 0.5 else (old, 1)
            assert (answer.release, answer.generation) == (release.ident, generation)
            assert equal(answer.detections, expected(release, png(0)))
        evidence = engine.evidence()
        assert (evidence.serving.images, evidence.candidate.images) == (
            sum(answer.generation == 1 for answer in answers.values()),
            sum(answer.generation == 2 for answer in answers.values()),
        )
        assert evidence.canaried == evidence.candidate.images > 0
        assert engine.watch().serving.images == evidence.serving.images


async def test_who_sends_no_id_keeps_the_serving_version(way: Callable, make_release: Callable[..., Release]) -> None:
    """Nobody could follow such a client, so it meets the candidate only after the commit."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=1.0, shadow=0.0)
        assert (await engine.detect(png(0), PLAIN, by(None))).generation == 1
        assert (await engine.detect(png(0), PLAIN, by("x"))).generation == 2


async def test_no_client_goes_back(way: Callable, make_release: Callable[..., Release]) -> None:
    """Under load, over rising shares and the flip, no client is ever answered by an older generation than before."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        await beside(engine, make_release)
        seen: dict[str, list[int]] = defaultdict(list)
        done = False

        async def client(name: str) -> None:
            while not done:
                seen[name].append((await engine.detect(png(0), PLAIN, by(name))).generation)

        clients = [asyncio.create_task(client(name)) for name in CLIENTS]

        async def rounds() -> None:
            counts = {name: len(seen[name]) for name in CLIENTS}
            while not all(len(seen[name]) >= counts[name] + 2 for name in CLIENTS):
                await asyncio.sleep(0)
                assert not any(task.done() for task in clients)

        newest = []
        for share in (0.0, 0.2, 0.6):
            await rounds()
            engine.begin_trial(B, 2, canary=share, shadow=0.2)
            await rounds()
            newest.append({name for name in CLIENTS if seen[name][-1] == 2})
        engine.hold()
        await asyncio.sleep(0)
        engine.flip(B, 2)
        engine.resume()
        await rounds()
        done = True
        await asyncio.gather(*clients)
    assert newest[0] == set()
    assert newest[0] < newest[1] < newest[2] < set(CLIENTS)
    assert all(generations == sorted(generations) and generations[-1] == 2 for generations in seen.values())


async def test_no_client_goes_back_from_one_replica_to_another(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """Whoever met the candidate on a replica where the step has begun waits on one that is held, and meets it again."""
    async with Engine(FakeBackend(plan=way(2, 4))) as first, Engine(FakeBackend(plan=way(2, 4))) as second:
        for engine in (first, second):
            await beside(engine, make_release)
            engine.hold()
        first.begin_trial(B, 2, canary=0.5, shadow=0.0)
        first.resume()
        assert (await first.detect(png(0), PLAIN, by(CHOSEN))).generation == 2
        asking = [asyncio.create_task(second.detect(png(0), PLAIN, by(client))) for client in (CHOSEN, OTHER)]
        await queue_of(second, 2)
        second.begin_trial(B, 2, canary=0.5, shadow=0.0)
        second.resume()
        assert [answer.generation for answer in await asyncio.gather(*asking)] == [2, 1]


@pytest.mark.parametrize(("imgsz", "times"), [(64, 1), (96, 2)])
@pytest.mark.parametrize("while_decoding", [False, True])
async def test_a_step_that_begins_meanwhile_decides_who_answers(
    make_release: Callable[..., Release],
    monkeypatch: pytest.MonkeyPatch,
    imgsz: int,
    times: int,
    *,
    while_decoding: bool,
) -> None:
    """Be the image in the queue or still decoded; it is decoded again only for a network of another geometry."""
    async with Engine(FakeBackend()) as engine:
        _, new = await beside(engine, make_release, imgsz=imgsz)
        make_job = engine._path._detecting.make_job
        entered, leave = threading.Event(), threading.Event()
        decoded = []

        def decode(*arguments: object) -> object:
            decoded.append(arguments)
            entered.set()
            assert leave.wait(20)
            return make_job(*arguments)

        monkeypatch.setattr(engine._path._detecting, "make_job", decode)
        engine.hold()
        asking = asyncio.create_task(engine.detect(png(0), PLAIN, by(CHOSEN)))
        assert await asyncio.to_thread(entered.wait, 20)
        if not while_decoding:
            leave.set()
            await queue_of(engine, 1)
        engine.begin_trial(B, 2, canary=0.5, shadow=0.0)
        leave.set()
        engine.resume()
        answer = await asking
        assert (answer.generation, len(decoded)) == (2, times)
        assert equal(answer.detections, expected(new, png(0)))


async def test_an_image_that_waits_over_many_steps_keeps_its_deadline(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """However often it is routed anew, its time runs out where it said."""
    now = 0.0
    async with Engine(FakeBackend(plan=way(1, 1)), clock=lambda: now) as engine:
        await beside(engine, make_release)
        engine.hold()
        asking = asyncio.create_task(engine.detect(png(0), PLAIN, RequestContext("test", 100.0, client_id=CHOSEN)))
        await queue_of(engine, 1)
        for share in (0.5, 0.1, 0.6):
            engine.begin_trial(B, 2, canary=share, shadow=0.0)
            assert engine.queued == 0
            await queue_of(engine, 1)
        now = 100.0
        engine.begin_trial(B, 2, canary=0.7, shadow=0.0)
        with pytest.raises(DeadlineExceededError):
            await asking
        assert engine.queued == 0


@pytest.mark.parametrize("end", ["end_trial", "discard", "replaced"])
async def test_an_ended_trial_answers_nobody(way: Callable, make_release: Callable[..., Release], end: str) -> None:
    """However it ends, at once every client is answered by what serves."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=1.0, shadow=0.0)
        assert (await engine.detect(png(0), PLAIN, by("x"))).generation == 2
        engine.hold()
        waiting = asyncio.create_task(engine.detect(png(0), PLAIN, by("x")))
        await until(lambda: engine._batcher.queued == 1)
        if end == "end_trial":
            engine.end_trial()
        elif end == "discard":
            engine.discard(B)
        else:
            await engine.prepare(make_release("c", "3"))
        engine.resume()
        assert (await waiting).generation == 1
        assert (await engine.detect(png(0), PLAIN, by("x"))).release.digest == A
        if end != "replaced":
            assert engine.evidence() == Evidence()


async def test_a_shadow_is_seen_by_nobody(way: Callable, make_release: Callable[..., Release]) -> None:
    """Every answer is the serving version's, while the candidate's are compared with them."""
    async with Engine(FakeBackend(plan=way(2, 1))) as engine:
        old, _ = await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
        for number in range(8):
            answer = await engine.detect(png(number), PLAIN, by("x"))
            assert (answer.generation, answer.release) == (1, old.ident)
            assert equal(answer.detections, expected(old, png(number)))
            await until(lambda count=number + 1: engine.evidence().pairs.images == count)
        evidence = engine.evidence()
        assert (evidence.serving.images, evidence.candidate.images, evidence.canaried) == (8, 8, 0)
        assert evidence.pairs.serving_boxes == evidence.pairs.candidate_boxes == 32
        assert evidence.pairs.dropped == 0
        engine.begin_trial(B, 2, canary=0.1, shadow=1.0)
        assert engine.evidence() == Evidence()


async def test_a_shadow_looks_at_its_share(way: Callable, make_release: Callable[..., Release]) -> None:
    """About the share asked for is looked at or dropped, spread over all images."""
    async with Engine(FakeBackend(plan=way(2, 4))) as engine:
        await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=0.0, shadow=0.3)
        for _ in range(100):
            await engine.detect(png(0), PLAIN, CONTEXT)
        await until(lambda: engine._trial._shadow._running is None)
        pairs = engine.evidence().pairs
        assert 15 <= pairs.images + pairs.dropped <= 45


async def test_no_live_image_waits_for_a_shadow(way: Callable, make_release: Callable[..., Release]) -> None:
    """While the candidate hangs on an image, live ones are answered; further shadows are dropped, two excepted."""
    gate = ShadowGate()
    async with Engine(FakeBackend(0.001, plan=way(1, 1), sleep=gate)) as engine:
        await beside(engine, make_release)
        gate.open.clear()
        engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
        for _ in range(10):
            await engine.detect(png(0), PLAIN, CONTEXT)
        assert gate.reached.is_set()
        assert engine.evidence().pairs.images == 0
        assert engine.evidence().pairs.dropped == 7
        gate.open.set()
        await until(lambda: engine.evidence().pairs.images == 3)


@pytest.mark.parametrize("lanes", [1, 2])
async def test_a_hung_shadow_stops_only_its_own_version(
    way: Callable, make_release: Callable[..., Release], lanes: int
) -> None:
    """A client of the canary may wait for it, everybody else is answered; then the client goes before other shadows."""
    gate = ShadowGate()
    backend = FakeBackend(0.001, plan=way(lanes, 4), sleep=gate)
    async with Engine(backend) as engine:
        await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=0.5, shadow=1.0)
        gate.open.clear()
        gate.calls.clear()
        await engine.detect(png(0), PLAIN, by(OTHER))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        chosen = asyncio.create_task(engine.detect(png(0), PLAIN, by(CHOSEN)))
        if lanes == 1:
            await queue_of(engine, 1)
        else:
            assert (await chosen).generation == 2
        for _ in range(3):
            answer = await asyncio.wait_for(engine.detect(png(0), PLAIN, by(OTHER)), 10.0)
            assert answer.generation == 1
        assert chosen.done() == (lanes == 2)
        gate.open.set()
        assert (await chosen).generation == 2
        assert gate.calls[:6] == ["lane", "shadow", "lane", "lane", "lane", "lane"]


async def test_a_flip_during_a_shadow_gives_its_lane_to_one_at_a_time(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """The candidate's lane that a shadow uses is not used again before, then its images go on."""
    gate = ShadowGate()
    async with Engine(FakeBackend(0.001, plan=way(1, 1), sleep=gate)) as engine:
        await beside(engine, make_release)
        gate.open.clear()
        engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
        await engine.detect(png(0), PLAIN, CONTEXT)
        await asyncio.to_thread(gate.reached.wait, 20)
        engine.flip(B, 2)
        waiting = asyncio.create_task(engine.detect(png(0), PLAIN, CONTEXT))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        gate.open.set()
        assert (await waiting).generation == 2
        assert engine.evidence() == Evidence()


async def test_a_discarded_candidate_is_freed_after_its_shadow(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """A shadow pins its release as any batch does; closing waits for it too."""
    gate = ShadowGate()
    backend = FakeBackend(0.001, plan=way(1, 1), sleep=gate)
    async with Engine(backend) as engine:
        await beside(engine, make_release)
        gate.open.clear()
        engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
        await engine.detect(png(0), PLAIN, CONTEXT)
        await asyncio.to_thread(gate.reached.wait, 20)
        engine.discard(B)
        (candidate,) = (session for session in backend.sessions if session.release.digest == B)
        assert not candidate.closed
        gate.open.set()
        await until(lambda: candidate.closed)
    assert all(session.closed for session in backend.sessions)


async def test_closing_waits_for_a_shadow(way: Callable, make_release: Callable[..., Release]) -> None:
    """Nothing is freed under it, nothing stays behind."""
    gate = ShadowGate()
    backend = FakeBackend(0.001, plan=way(1, 1), sleep=gate)
    engine = Engine(backend)
    await beside(engine, make_release)
    gate.open.clear()
    engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
    await engine.detect(png(0), PLAIN, CONTEXT)
    await asyncio.to_thread(gate.reached.wait, 20)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    gate.open.set()
    await closing
    assert all(session.closed for session in backend.sessions)
    await engine.close()


async def test_failures_are_laid_at_the_right_door(way: Callable, make_release: Callable[..., Release]) -> None:
    """The candidate's count for it, whether a client or only the shadow noticed; a bad picture counts for nobody."""
    backend = FakeBackend(plan=way(1, 1))
    async with Engine(backend) as engine:
        await beside(engine, make_release)
        engine.begin_trial(B, 2, canary=1.0, shadow=1.0)
        with pytest.raises(InvalidImageError):
            await engine.detect(b"", PLAIN, by("x"))
        await engine.detect(png(0), PLAIN, by(None))
        await until(lambda: engine.evidence().pairs.images == 1)
        backend.infer_error = RuntimeError("broken")
        for _ in range(3):
            with pytest.raises(BackendError):
                await engine.detect(png(0), PLAIN, by("x"))
        with pytest.raises(BackendError):
            await engine.detect(png(0), PLAIN, by(None))
        evidence = engine.evidence()
        assert (evidence.candidate.errors, evidence.serving.errors, evidence.canaried) == (3, 4, 3)
        assert engine.watch().serving.errors == 4


async def test_what_the_candidate_fails_on_is_answered_by_the_serving_version(
    way: Callable, make_release: Callable[..., Release]
) -> None:
    """Its client hears nothing of it, whatever the two networks take in; each failure is counted, once."""
    backend = FakeBackend(plan=way(1, 1))

    def fail(_seconds: float) -> None:
        if backend.calls and backend.calls[-1].digest == B:
            msg = "broken"
            raise RuntimeError(msg)

    async with Engine(backend) as engine:
        old, _ = await beside(engine, make_release, imgsz=96)
        engine.begin_trial(B, 2, canary=1.0, shadow=0.0)
        backend.sleep = fail
        for _ in range(3):
            answer = await engine.detect(png(0), PLAIN, by("x"))
            assert (answer.release, answer.generation) == (old.ident, 1)
            assert equal(answer.detections, expected(old, png(0)))
        evidence = engine.evidence()
        assert (evidence.candidate.errors, evidence.candidate.images, evidence.canaried) == (3, 0, 3)
        assert (evidence.serving.errors, evidence.serving.images) == (0, 3)
        assert engine.watch().serving.errors == 0


async def test_a_candidate_that_fails_in_the_shadow(make_release: Callable[..., Release]) -> None:
    """Its failures are told from images that were dropped, and hurt no client."""
    backend = FakeBackend()
    shadows = 0

    def fail(_seconds: float) -> None:
        nonlocal shadows
        if threading.current_thread().name.startswith("shadow"):
            shadows += 1
            msg = "broken"
            raise RuntimeError(msg)

    async with Engine(backend) as engine:
        await beside(engine, make_release)
        backend.sleep = fail
        engine.begin_trial(B, 2, canary=0.0, shadow=1.0)
        for number in range(4):
            await engine.detect(png(0), PLAIN, CONTEXT)
            await until(lambda count=number + 1: engine.evidence().pairs.failed == count)
        evidence = engine.evidence()
        assert (evidence.candidate.errors, evidence.candidate.images, evidence.pairs.dropped) == (4, 0, 0)
        assert (evidence.serving.images, evidence.serving.errors, evidence.canaried, shadows) == (4, 0, 0, 4)


@pytest.mark.parametrize(("ran_s", "errors"), [(OVERRUN_S / 2, 0), (OVERRUN_S, 1)])
async def test_an_image_that_never_ends_is_a_failure(
    way: Callable, make_release: Callable[..., Release], ran_s: float, errors: int
) -> None:
    """Time that runs out on a lane is the release's fault only when it had the image for long."""
    now = 0.0
    entered, leave = threading.Event(), threading.Event()

    def hang(seconds: float) -> None:
        if seconds:
            entered.set()
            assert leave.wait(20)

    async with Engine(FakeBackend(0.001, plan=way(1, 1), sleep=hang), clock=lambda: now) as engine:
        leave.set()
        await serve(engine, make_release())
        leave.clear()
        entered.clear()
        asking = asyncio.create_task(engine.detect(png(0), PLAIN, RequestContext("test", deadline=0.5)))
        assert await asyncio.to_thread(entered.wait, 20)
        now = ran_s
        with pytest.raises(DeadlineExceededError):
            await asking
        assert engine.watch().serving.errors == errors
        leave.set()


async def test_only_what_can_be_compared_is_tried(make_release: Callable[..., Release]) -> None:
    """A version that is not loaded, serves already or means other things by its class ids is refused."""
    async with Engine(FakeBackend()) as engine:
        with pytest.raises(ReleaseFaultError, match="not loaded"):
            engine.begin_trial(B, 2, canary=0.0, shadow=0.1)
        await serve(engine, make_release("a"))
        for digest in (A, B):
            with pytest.raises(ReleaseFaultError, match="not loaded") as fault:
                engine.begin_trial(digest, 2, canary=0.0, shadow=0.1)
            assert fault.value.step == "shadow"
        await engine.prepare(make_release("b", names=("bread", "apple", "cheese")))
        with pytest.raises(ReleaseRejectedError, match="names its classes otherwise") as rejected:
            engine.begin_trial(B, 2, canary=0.1, shadow=0.1)
        assert rejected.value.step == "canary"
        await engine.prepare(make_release("c", names=("apple", "bread", "cheese", "donut")))
        engine.begin_trial("c" * 64, 2, canary=1.0, shadow=0.1)
        assert (await engine.detect(png(0), PLAIN, by("x"))).generation == 2


async def test_a_version_that_served_before_is_tried_from_its_slot(make_release: Callable[..., Release]) -> None:
    """Content that is resident already, here as the previous release, answers under its new name."""
    async with Engine(FakeBackend()) as engine:
        await beside(engine, make_release)
        engine.flip(B, 2)
        await engine.prepare(make_release("a", "3"))
        engine.begin_trial(A, 3, canary=1.0, shadow=0.0)
        answer = await engine.detect(png(0), PLAIN, by("x"))
        assert (answer.release.version, answer.generation) == ("3", 3)


async def test_the_watch_holds_versions_apart(way: Callable, make_release: Callable[..., Release]) -> None:
    """After a flip the new version starts from nothing, beside the hour before; an idle check counts for nobody."""
    async with Engine(FakeBackend(plan=way(1, 4))) as engine:
        await beside(engine, make_release)
        for _ in range(5):
            await engine.detect(png(0), PLAIN, CONTEXT)
        engine.flip(B, 2)
        await engine.check_sight()
        assert engine.watch() == Evidence()
        await engine.detect(png(0), PLAIN, CONTEXT)
        assert engine.watch().serving.images == 1
        assert engine.watch_before().serving.images == 5
        assert sum(engine.watch_before().serving.scores) == 20
