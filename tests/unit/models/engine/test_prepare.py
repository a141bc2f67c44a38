"""Preparing: every failure carries its step and whether it is permanent, and frees what was loaded."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from engine_scenes import png

from models.engine.backends.backend import Ahead, Plan
from models.engine.backends.fake import FakeBackend, FakeSession
from models.engine.forms import Form, FormCache
from models.engine.prepare import SIGHT_CONF, AbandonedError, Preparer, estimate
from models.engine.priority import LOAD_NICENESS
from models.engine.processors import Processors
from models.engine.warm import common_shapes
from models.errors import BackendError, ReleaseFaultError, ReleaseRejectedError
from models.types import Detections, GoldenImage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.types import Release


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what notes each lowering of priority, in the place of a real one: this thread would never get it back."""
    noted: list[str] = []
    monkeypatch.setattr("models.engine.prepare.give_way", lambda niceness: noted.append(f"gives way {niceness}"))
    return noted


def preparer(backend: FakeBackend, **more: object) -> Preparer:
    """Return a preparer with room for every shape."""
    return Preparer(backend, FormCache(10**9), **more)


def golden(picture: Callable[..., bytes], *sizes: tuple[int, int]) -> tuple[GoldenImage, ...]:
    """Return golden images of these (height, width)."""
    return tuple(GoldenImage(f"{h}x{w}.png", picture(h, w), Detections.empty()) for h, w in sizes)


def test_golden_and_common_shapes_are_warm(make_release: Callable[..., Release], picture: Callable) -> None:
    """The shapes that will surely come are warm before the release serves."""
    release = make_release(golden=golden(picture, (10, 64)))
    session = preparer(FakeBackend()).prepare(release, None, None, threading.Event())
    assert session.warmed == {(32, 64), (64, 64), (64, 48 // 32 * 32 + 32)}


@pytest.mark.parametrize("beside", [False, True])
def test_only_what_is_prepared_beside_answers_gives_way(
    make_release: Callable[..., Release], events: list[str], *, beside: bool
) -> None:
    """A successor is loaded at a lower priority from its first byte on; the first release has nobody to disturb."""
    work = preparer(FakeBackend(load_time_s=1.0, sleep=lambda seconds: events.append("loads") if seconds else None))
    work.prepare(make_release("a"), make_release("b") if beside else None, None, threading.Event())
    assert events == [f"gives way {LOAD_NICENESS}", "loads"][not beside :]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not place threads")
@pytest.mark.parametrize("beside", [False, True])
def test_lanes_hear_of_a_load_beside_answers(
    make_release: Callable[..., Release], tmp_path: Path, *, beside: bool
) -> None:
    """While a successor is prepared, and not before or after, something loads on this machine."""
    heard: list[bool] = []
    processors = Processors(tmp_path / "processors.lock")

    def listen() -> bool:
        before = os.sched_getaffinity(0)
        with processors.own():
            return os.sched_getaffinity(0) != before

    with ThreadPoolExecutor(1) as lane:

        def load(seconds: float) -> None:
            if seconds:
                heard.append(lane.submit(listen).result())

        work = preparer(FakeBackend(load_time_s=1.0, sleep=load), processors=processors)
        work.prepare(make_release("a"), make_release("b") if beside else None, None, threading.Event())
        heard.append(lane.submit(listen).result())
    assert heard == [beside and len(os.sched_getaffinity(0)) > 1, False]


def test_a_load_beside_answers_says_what_it_will_warm(make_release: Callable[..., Release], picture: Callable) -> None:
    """Shapes of golden images, then those in use or else the common ones, each once; a first load says nothing."""
    backend = FakeBackend()
    work = preparer(backend)
    serving = make_release("a")
    first = work.prepare(serving, None, None, threading.Event())
    assert backend.beside is None
    abandoned = threading.Event()
    work.prepare(make_release("b"), serving, None, abandoned)
    assert backend.beside.abandoned is abandoned
    assert backend.beside.ahead == tuple(Ahead(shape) for shape in common_shapes(serving.contract))
    for form in (Form(first, (32, 64)), Form(first, (32, 32), alone=True), Form(first, (96, 96))):
        assert work.forms.warm(form)
    work.prepare(make_release("c", golden=golden(picture, (10, 64))), serving, first, threading.Event())
    ahead = backend.beside.ahead
    assert ahead[0] == Ahead((32, 64))
    common = [Ahead(shape) for shape in common_shapes(serving.contract)]
    assert set(ahead) == {Ahead((32, 64)), Ahead((32, 32), alone=True), *common}
    assert len(ahead) == len(set(ahead))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("cause", ["blind", "NaN", "fails", "its own"])
def test_what_was_compiled_elsewhere_condemns_no_release(
    make_release: Callable[..., Release],
    caplog: pytest.LogCaptureFixture,
    cause: str,
    *,
    beside: bool,
) -> None:
    """A failure counts only on what this replica has compiled itself: a spoilt file would condemn it for all."""
    backend = FakeBackend()

    def see(_release: Release, detect: Callable[[bytes], Detections], _serving: Release | None) -> None:
        if not len(detect(png(0)).boxes):
            msg = "sees nothing"
            raise ReleaseRejectedError(msg, step="golden")

    work = preparer(backend, sight_test=see)
    serving = make_release("a") if beside else None
    if beside:
        work.prepare(make_release("a"), None, None, threading.Event())
    load = backend.load
    trusted = [True, False]

    def spoilt(release: Release, *how: object) -> FakeSession:
        backend.found = trusted.pop(0)
        wrong = backend.found or cause == "its own"
        backend.blind = wrong and cause in {"blind", "its own"}
        backend.finite = not (wrong and cause == "NaN")
        backend.infer_error = BackendError("broken") if wrong and cause == "fails" else None
        return load(release, *how)

    backend.load = spoilt
    with pytest.raises(ReleaseRejectedError) if cause == "its own" else contextlib.nullcontext():
        work.prepare(make_release("b"), serving, None, threading.Event())
    assert trusted == []
    assert "is made anew" in caplog.text
    assert [session.closed for session in backend.sessions][-2:] == [True, cause == "its own"]


def test_what_this_replica_has_compiled_is_rejected_at_once(make_release: Callable[..., Release]) -> None:
    """A network that answers NaN is loaded once."""
    backend = FakeBackend()
    work = preparer(backend)
    serving = make_release("a")
    work.prepare(serving, None, None, threading.Event())
    backend.finite = False
    with pytest.raises(ReleaseRejectedError, match="NaN"):
        work.prepare(make_release("b"), serving, None, threading.Event())
    assert len(backend.sessions) == 2


def test_whoever_waits_for_a_turn_in_vain_loads_nothing(make_release: Callable[..., Release], tmp_path: Path) -> None:
    """A load that nobody waits for any more ends while it waits for its turn."""
    file = tmp_path / "processors.lock"
    backend = FakeBackend()
    abandoned = threading.Event()
    abandoned.set()
    with Processors(file).loading(), pytest.raises(AbandonedError):
        preparer(backend, processors=Processors(file)).prepare(make_release(), make_release("b"), None, abandoned)
    assert list(backend.sessions) == []


def test_a_successor_is_warmed_like_what_serves(make_release: Callable[..., Release]) -> None:
    """After a swap the shapes that clients send now are as fast as before it."""
    work = preparer(FakeBackend())
    first = work.prepare(make_release("a"), None, None, threading.Event())
    work.forms.warm(Form(first, (32, 64)))
    second = work.prepare(make_release("b"), make_release("a"), first, threading.Event())
    assert second.warmed == first.warmed


def test_forms_for_lone_calls_are_inherited_and_tried_as_such(make_release: Callable[..., Release]) -> None:
    """A lone client is served as fast after a swap as before it, and what it will run has been run once."""
    backend = FakeBackend(plan=Plan(2, 1, alone=True))
    work = preparer(backend)
    first = work.prepare(make_release("a"), None, None, threading.Event())
    work.forms.warm(Form(first, (32, 64), alone=True))
    backend.calls.clear()
    second = work.prepare(make_release("b"), make_release("a"), first, threading.Event())
    assert (second.warmed, second.warmed_alone) == (first.warmed, {(32, 64)})
    assert [call.shape for call in backend.calls if call.alone] == [(32, 64)]


def test_a_release_that_does_not_fit_beside_the_forms_takes_their_room(make_release: Callable[..., Release]) -> None:
    """Forms give way to a release, the budget is kept, and a failed load gives its part back."""
    release = heavy(make_release, "a", 1)
    fake = FakeBackend()
    work = Preparer(fake, FormCache(2 * estimate(release)))
    first = work.prepare(release, None, None, threading.Event())
    assert work.forms.forms(first) != ()
    second = work.prepare(heavy(make_release, "b", 1), release, first, threading.Event(), [release])
    assert work.forms.forms(first) == work.forms.forms(second) == ()
    assert work.forms.used() == work.forms.budget
    work.forms.drop(second)
    fake.finite = False
    with pytest.raises(ReleaseRejectedError):
        work.prepare(heavy(make_release, "c", 1), release, first, threading.Event(), [release])
    assert work.forms.used() == estimate(release)


def test_shapes_that_do_not_fit_the_successor_are_left(make_release: Callable[..., Release]) -> None:
    """A release of smaller tensors is not warmed for larger ones."""
    work = preparer(FakeBackend())
    first = work.prepare(make_release("a", imgsz=128), None, None, threading.Event())
    second = work.prepare(make_release("b"), make_release("a"), first, threading.Event())
    assert all(max(shape) <= 64 for shape in second.warmed)


def test_a_form_that_cannot_be_made_stops_no_release(
    make_release: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form only makes things faster; without it the release is prepared and sees through the general one."""

    def fail(_session: FakeSession, _shape: object, *, alone: bool = False, copy: int = 0) -> bool:
        msg = f"no memory, alone: {alone}, copy: {copy}"
        raise BackendError(msg)

    monkeypatch.setattr(FakeSession, "warm", fail)
    backend = FakeBackend()
    work = preparer(backend)
    session = work.prepare(make_release("a"), None, None, threading.Event())
    assert work.forms.forms(session) == ()
    assert backend.calls


def test_the_plan_is_chosen_once(make_release: Callable[..., Release]) -> None:
    """Later releases are driven like the first: a measurement under load would mislead."""
    backend = FakeBackend()
    backend.plans = lambda: (Plan(1, 4), Plan(2, 2))
    work = preparer(backend)
    first = work.prepare(make_release("a"), None, None, threading.Event())
    loads = len(backend.sessions)
    second = work.prepare(make_release("b"), None, None, threading.Event())
    assert (loads, len(backend.sessions), second.plan) == (2, 3, first.plan)


def test_settings_force_the_plan(make_release: Callable[..., Release]) -> None:
    """Forced lanes and batch leave nothing to measure."""
    backend = FakeBackend()
    backend.plans = lambda: (Plan(1, 4), Plan(2, 4))
    session = preparer(backend, lanes=3, max_batch=5).prepare(make_release(), None, None, threading.Event())
    assert (session.plan, len(backend.sessions)) == (Plan(3, 5), 1)


def test_the_sight_test_sees_through_the_candidate(make_release: Callable[..., Release], picture: Callable) -> None:
    """It gets the candidate, what serves, and a detector that is not yet serving."""
    seen: list[object] = []

    def sight_test(release: Release, detect: Callable, serving: Release | None) -> None:
        found = detect(picture())
        seen.extend((release.digest[0], serving.digest[0], len(found), found.scores.min() >= SIGHT_CONF))

    work = preparer(FakeBackend(), sight_test=sight_test)
    work.prepare(make_release("b"), make_release("a"), None, threading.Event())
    assert seen == ["b", "a", 4, True]


def refuse(*_: object) -> None:
    """Find every release blind."""
    msg = "blind"
    raise ReleaseRejectedError(msg, step="golden")


def stumble(*_: object) -> None:
    """Fail in an unforeseen way."""
    msg = "a bug"
    raise KeyError(msg)


def look(_release: Release, detect: Callable[[bytes], object], _serving: object) -> None:
    """Look at rubbish."""
    detect(b"rubbish")


@pytest.mark.parametrize(
    ("backend", "sight_test", "kind", "step"),
    [
        ({"load_error": ReleaseRejectedError("bad", step="load")}, None, ReleaseRejectedError, "load"),
        ({"load_error": MemoryError()}, None, ReleaseFaultError, "load"),
        ({"load_error": OSError("disk")}, None, ReleaseFaultError, "load"),
        ({"finite": False}, None, ReleaseRejectedError, "warm"),
        ({"infer_error": BackendError("no")}, None, ReleaseFaultError, "warm"),
        ({"infer_error": MemoryError()}, None, ReleaseFaultError, "warm"),
        ({}, refuse, ReleaseRejectedError, "golden"),
        ({}, stumble, ReleaseFaultError, "golden"),
        ({}, look, ReleaseRejectedError, "golden"),
    ],
)
def test_failures_name_their_step(
    make_release: Callable[..., Release], backend: dict, sight_test: object, kind: type, step: str
) -> None:
    """Bad bytes are permanent, bad surroundings are not; nothing stays loaded."""
    fake = FakeBackend(**backend)
    with pytest.raises(kind) as caught:
        preparer(fake, sight_test=sight_test).prepare(make_release(), None, None, threading.Event())
    assert (type(caught.value), caught.value.step) == (kind, step)
    assert all(session.closed for session in fake.sessions)


def test_a_runtime_failure_during_the_sight_test_is_transient(make_release: Callable, picture: Callable) -> None:
    """A runtime that breaks says nothing of what the network sees."""
    fake = FakeBackend()

    def sight_test(_release: Release, detect: Callable, _serving: Release | None) -> None:
        fake.infer_error = BackendError("no memory")
        detect(picture())

    with pytest.raises(ReleaseFaultError) as caught:
        preparer(fake, sight_test=sight_test).prepare(make_release(), None, None, threading.Event())
    assert caught.value.step == "golden"


def test_an_undecodable_golden_image_is_permanent(make_release: Callable[..., Release]) -> None:
    """The release's own bytes are at fault."""
    release = make_release(golden=(GoldenImage("bad.png", b"rubbish", Detections.empty()),))
    with pytest.raises(ReleaseRejectedError) as caught:
        preparer(FakeBackend()).prepare(release, None, None, threading.Event())
    assert caught.value.step == "golden"


def test_abandoned_work_frees_itself(make_release: Callable[..., Release]) -> None:
    """When nobody waits any more the session is closed and its shapes are forgotten."""
    fake, abandoned = FakeBackend(), threading.Event()
    work = preparer(fake, sight_test=lambda *_: abandoned.set())
    with pytest.raises(AbandonedError):
        work.prepare(make_release(), None, None, abandoned)
    (session,) = fake.sessions
    assert session.closed
    assert work.forms.forms(session) == ()


def heavy(make_release: Callable[..., Release], letter: str, mib: int) -> Release:
    """Return a release whose network's file has that size."""
    return make_release(letter, files={"model.onnx": np.empty(mib * 1024**2, np.uint8)})


def test_a_release_over_the_memory_budget_is_not_loaded(make_release: Callable[..., Release]) -> None:
    """It waits for more memory as a fault, with the way out, and what serves is not driven out of memory."""
    fake = FakeBackend()
    first, second = heavy(make_release, "a", 9), heavy(make_release, "b", 9)
    room, needed = estimate(first) + estimate(second), estimate(first) // 1024**2
    Preparer(fake, FormCache(room)).prepare(second, None, None, threading.Event(), [first])
    with pytest.raises(ReleaseFaultError, match=rf"{needed} MiB beside {needed} MiB .*_MEMORY_BUDGET_MB") as caught:
        Preparer(fake, FormCache(room - 1)).prepare(second, None, None, threading.Event(), [first])
    assert (caught.value.step, len(fake.sessions)) == ("load", 1)


def test_the_estimate_fits_what_was_measured(make_release: Callable[..., Release]) -> None:
    """YOLO26n, its network of 10 MiB, took 140 to 225 MiB; what takes nothing is estimated at nothing."""
    assert 140 <= estimate(heavy(make_release, "a", 10)) / 1024**2 <= 225
    assert estimate(make_release()) == 0


def test_blank_pictures_are_probed_too(make_release: Callable[..., Release]) -> None:
    """Without golden images NaN is still found, on grey tensors."""
    fake = FakeBackend(finite=False)
    with pytest.raises(ReleaseRejectedError, match="NaN"):
        preparer(fake).prepare(make_release(head="raw"), None, None, threading.Event())
    assert np.prod(fake.calls[0].shape) > 0
