"""Residents: one preparation at a time, nothing stays loaded that nobody wants, all freeing off the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.engine.backends.fake import FakeBackend
from models.engine.forms import CLEARLY_MORE, EARNED_AFTER, Form, FormCache
from models.engine.observe import NullObserver
from models.engine.prepare import Preparer, estimate
from models.engine.priority import FORM_NICENESS, LOADER
from models.engine.residents import Residents
from models.errors import BackendError, ReleaseFaultError, ReleaseRejectedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from models.engine.backends.fake import FakeSession
    from models.types import Release


class Gate:
    """A sleep that lasts until the gate is opened, and says when somebody waits at it."""

    def __init__(self) -> None:
        """Start shut."""
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, seconds: float) -> None:
        """Wait if there is time to spend."""
        if seconds:
            self.reached.set()
            assert self.open.wait(20)


@asynccontextmanager
async def residents_of(backend: FakeBackend, budget: int = 10**9) -> AsyncIterator[Residents]:
    """Yield residents and close them; ``budget`` is for releases and forms together (bytes)."""
    residents = Residents(Preparer(backend, FormCache(budget)), NullObserver())
    try:
        yield residents
    finally:
        await asyncio.wait_for(residents.close(), 20)
        assert all(session.closed for session in backend.sessions)


async def test_resident_content_is_not_loaded_again(make_release: Callable[..., Release]) -> None:
    """Active, previous and candidate releases are ready as they are; another version's name waits for its flip."""
    backend = FakeBackend()
    async with residents_of(backend) as residents:
        for letter in "ab":
            await residents.prepare(make_release(letter))
            residents.slots.flip(letter * 64, 1)
        await residents.prepare(make_release("c"))
        loaded = len(backend.sessions)
        for letter in "abc":
            await residents.prepare(make_release(letter, version="9"))
        assert len(backend.sessions) == loaded
        assert residents.slots.active.release.version == "1"
        assert residents.slots.flip("b" * 64, 2).version == "9"
        await residents.prepare(make_release("a", version="1"))
        assert residents.slots.flip("a" * 64, 3).version == "1"


async def test_a_new_candidate_replaces_the_old_one(make_release: Callable[..., Release]) -> None:
    """The old candidate is freed before the new one is loaded."""
    backend = FakeBackend()
    async with residents_of(backend) as residents:
        await residents.prepare(make_release("a"))
        await residents.prepare(make_release("b"))
        assert residents.slots.candidate.release.digest[0] == "b"
        assert [session.closed for session in backend.sessions] == [True, False]


async def test_a_rejected_release_leaves_no_trace(make_release: Callable[..., Release]) -> None:
    """The slots stay as they were, and the next release is prepared normally."""
    backend = FakeBackend()
    async with residents_of(backend) as residents:
        await residents.prepare(make_release("a"))
        residents.slots.flip("a" * 64, 1)
        backend.finite = False
        with pytest.raises(ReleaseRejectedError):
            await residents.prepare(make_release("b"))
        assert (residents.slots.active.release.digest[0], residents.slots.candidate) == ("a", None)
        backend.finite = True
        await residents.prepare(make_release("b"))


async def test_all_that_stays_loaded_counts_against_the_budget(make_release: Callable[..., Release]) -> None:
    """Active and previous release stay beside a candidate; the old candidate does not."""
    files = {"model.onnx": np.empty(1024**2, np.uint8)}
    releases = {letter: make_release(letter, files=files) for letter in "abcd"}
    backend = FakeBackend()
    async with residents_of(backend, 2 * estimate(releases["a"])) as residents:
        await residents.prepare(releases["d"])
        for letter in "ab":
            await residents.prepare(releases[letter])
            residents.slots.flip(letter * 64, 1)
        with pytest.raises(ReleaseFaultError) as caught:
            await residents.prepare(releases["c"])
        assert caught.value.step == "load"
        assert residents.slots.find("b" * 64) is residents.slots.active


async def test_cancelling_frees_what_was_loaded(make_release: Callable[..., Release]) -> None:
    """A preparation that nobody awaits any more closes its session, and the next one is not blocked by it."""
    gate = Gate()
    backend = FakeBackend(load_time_s=1.0, sleep=gate)
    async with residents_of(backend) as residents:
        task = asyncio.create_task(residents.prepare(make_release("a")))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await residents.prepare(make_release("b"))
        assert residents.slots.candidate.release.digest[0] == "b"
        assert [session.closed for session in backend.sessions] == [True, False]


async def test_a_session_finished_as_its_caller_goes_is_freed(make_release: Callable[..., Release]) -> None:
    """A preparation that no longer notices the cancelling hands back a session that nobody takes: it is closed."""
    gate = Gate()
    backend = FakeBackend(load_time_s=1.0, sleep=gate)
    async with residents_of(backend) as residents:
        plain = residents._preparer
        residents._preparer = SimpleNamespace(
            prepare=lambda release, *_: backend.load(release), forms=plain.forms, processors=plain.processors
        )
        task = asyncio.create_task(residents.prepare(make_release("a")))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        await residents.prepare(make_release("b"))
    assert [session.closed for session in backend.sessions] == [True, True]


async def test_closing_ends_a_running_preparation(make_release: Callable[..., Release]) -> None:
    """Its caller gets UnavailableError, and later ones too."""
    gate = Gate()
    backend = FakeBackend(load_time_s=1.0, sleep=gate)
    async with residents_of(backend) as residents:
        task = asyncio.create_task(residents.prepare(make_release("a")))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        closing = asyncio.create_task(residents.close())
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(UnavailableError):
            await task
        await closing
        with pytest.raises(UnavailableError):
            await residents.prepare(make_release("b"))


async def test_a_lease_that_outlives_the_worker_is_still_freed(make_release: Callable[..., Release]) -> None:
    """A batch that ends after closing gives its session back."""
    backend = FakeBackend()
    residents = Residents(Preparer(backend, FormCache(10**9)), NullObserver())
    await residents.prepare(make_release("a"))
    residents.slots.flip("a" * 64, 1)
    lease = residents.slots.lease()
    await residents.close()
    (session,) = backend.sessions
    assert not session.closed
    lease.end()
    for _ in range(1000):
        if session.closed:
            break
        await asyncio.to_thread(threading.Event().wait, 0.01)
    assert session.closed


async def test_a_session_that_cannot_be_closed_is_survived(make_release: Callable[..., Release]) -> None:
    """An error while freeing is logged and stops nothing."""
    backend = FakeBackend()
    residents = Residents(Preparer(backend, FormCache(10**9)), NullObserver())
    await residents.prepare(make_release("a"))

    def fail() -> None:
        msg = "stuck"
        raise RuntimeError(msg)

    backend.sessions[0].close = fail
    residents.slots.discard("a" * 64)
    await residents.prepare(make_release("b"))
    await residents.close()
    assert backend.sessions[1].closed


class Compiled(NullObserver):
    """Remembers what was compiled."""

    def __init__(self) -> None:
        """Start empty."""
        self.shapes: list[tuple] = []
        self.happened = asyncio.Event()

    def compiled(self, release: object, shape: tuple, error: BaseException | None) -> None:
        """Write it down."""
        self.shapes.append((release.digest[0], shape, error))
        self.happened.set()


async def test_frequent_shapes_are_warmed_in_the_background(make_release: Callable[..., Release]) -> None:
    """A shape that comes often enough is warmed once; one of a release that no longer serves is not."""
    backend, observer = FakeBackend(), Compiled()
    residents = Residents(Preparer(backend, FormCache(10**9)), observer)
    await residents.prepare(make_release("a"))
    residents.slots.flip("a" * 64, 1)
    (session,) = backend.sessions
    for _ in range(EARNED_AFTER + 5):
        residents.warm_if_earned(Form(session, (32, 32)), 1)
    await asyncio.wait_for(observer.happened.wait(), 20)
    assert observer.shapes == [("a", (32, 32), None)]
    assert (32, 32) in session.warmed
    assert residents.slots.active.leases == 0
    stranger = backend.load(make_release("z"))
    residents.warm_if_earned(Form(stranger, (32, 32)), EARNED_AFTER)
    await residents.close()
    assert (stranger.warmed, residents.slots.active) == (set(), None)


@asynccontextmanager
async def serving(make_release: Callable[..., Release]) -> AsyncIterator[tuple[Residents, FakeSession, Compiled]]:
    """Yield residents of which one serves, its session, and what was compiled for it."""
    backend, observer = FakeBackend(), Compiled()
    residents = Residents(Preparer(backend, FormCache(10**9)), observer)
    await residents.prepare(make_release("a"))
    residents.slots.flip("a" * 64, 1)
    try:
        yield residents, backend.sessions[0], observer
    finally:
        await asyncio.wait_for(residents.close(), 20)
        assert backend.sessions[0].closed


async def worked(residents: Residents) -> None:
    """Wait until the worker has done what it was given, and the loop has heard of it."""
    await asyncio.wrap_future(residents._worker.submit(lambda: None))
    for _ in range(8):
        await asyncio.sleep(0)


async def test_forms_are_made_at_a_lower_priority(
    make_release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are answered meanwhile, also where the release that serves was prepared beside none."""
    events: list[object] = []
    monkeypatch.setattr("models.engine.residents.give_way", events.append)
    async with serving(make_release) as (residents, session, _):
        session.warm = lambda *_, **__: events.append("makes") is None
        residents.warm_if_earned(Form(session, (32, 32)), EARNED_AFTER)
        await worked(residents)
        assert events == [FORM_NICENESS, "makes"]


async def test_a_failing_form_harms_nobody(make_release: Callable[..., Release]) -> None:
    """It is told of, its lease ends, and other forms are made."""
    async with serving(make_release) as (residents, session, observer):

        def fail(*_: object, **__: object) -> bool:
            msg = "no memory"
            raise BackendError(msg)

        session.warm = fail
        for _ in range(3):
            residents.warm_if_earned(Form(session, (32, 32)), EARNED_AFTER)
            await worked(residents)
        del session.warm
        ((digest, shape, error),) = observer.shapes
        assert (digest, shape, type(error)) == ("a", (32, 32), BackendError)
        assert residents.slots.active.leases == 0
        residents.warm_if_earned(Form(session, (32, 64)), EARNED_AFTER)
        await worked(residents)
        assert (32, 64) in session.warmed


async def test_a_useless_form_is_not_told_of(make_release: Callable[..., Release]) -> None:
    """Nothing was compiled that anybody will use."""
    async with serving(make_release) as (residents, session, observer):
        session.warm = lambda *_, **__: False
        residents.warm_if_earned(Form(session, (32, 32)), EARNED_AFTER)
        await worked(residents)
        assert (observer.shapes, residents.slots.active.leases) == ([], 0)


async def test_forms_are_made_again_after_one_that_the_worker_did_not_take(make_release: Callable) -> None:
    """A worker that refuses, or drops what it took, neither raises into the batch's end nor blocks what follows."""
    async with serving(make_release) as (residents, session, observer):
        worker, gate = residents._worker, threading.Event()
        stopped = ThreadPoolExecutor(1)
        stopped.shutdown()
        residents._worker = stopped
        residents.warm_if_earned(Form(session, (32, 32)), EARNED_AFTER)
        dropping = ThreadPoolExecutor(1)
        dropping.submit(gate.wait, 20)
        residents._worker = dropping
        residents.warm_if_earned(Form(session, (32, 64)), EARNED_AFTER)
        assert residents.slots.active.leases == 1
        dropping.shutdown(wait=False, cancel_futures=True)
        gate.set()
        residents._worker = worker
        await worked(residents)
        assert (observer.shapes, residents.slots.active.leases) == ([], 0)
        residents.warm_if_earned(Form(session, (64, 32)), EARNED_AFTER)
        await worked(residents)
        assert observer.shapes == [("a", (64, 32), None)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names of threads")
async def test_whatever_loads_starts_can_be_told_from_what_answers(make_release: Callable[..., Release]) -> None:
    """The first release is loaded on a named thread, too, for a runtime keeps what it starts there."""
    names: list[bytes] = []

    def load(seconds: float) -> None:
        if seconds:
            names.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_bytes().strip())

    async with residents_of(FakeBackend(load_time_s=1.0, sleep=load)) as residents:
        await residents.prepare(make_release("a"))
    assert names == [LOADER]


async def test_forms_of_what_no_longer_serves_give_way(make_release: Callable[..., Release]) -> None:
    """After a flip they count so little that those of the new release displace them; a flip to itself changes none."""
    async with residents_of(FakeBackend()) as residents:
        forms = residents._preparer.forms
        counts = {}
        for letter in "ab":
            await residents.prepare(make_release(letter))
            residents.flip(letter * 64, 1)
            form = Form(residents.slots.active.session, (32, 32))
            forms.note(form, 100 * CLEARLY_MORE)
            counts[letter] = form
        residents.flip("b" * 64, 2)
        assert forms._seen[counts["b"]] > CLEARLY_MORE * forms._seen[counts["a"]] > 0
        assert forms._seen[counts["b"]] >= 100 * CLEARLY_MORE
