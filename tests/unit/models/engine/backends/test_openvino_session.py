"""The forms of an OpenVINO session: which one ran never shows, and whatever happens, no stream is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.engine.backends import openvino_session as module
from models.engine.backends.backend import Plan
from models.engine.backends.openvino import OpenVinoBackend
from models.engine.backends.openvino_compile import compile_into
from models.engine.backends.openvino_compiled import CompiledNetworks
from models.engine.backends.openvino_network import Network, Variant, runtime
from models.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.engine.backends.openvino_session import OpenVinoSession
    from models.types import Release

pytest.importorskip("openvino")

SHAPE = (64, 96)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, *SHAPE, 3), np.uint8)
PLAN = Plan(3, 1, alone=True, decodes=True)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def backend(request: pytest.FixtureRequest) -> OpenVinoBackend:
    """Return the runtime in each precision that the processor has."""
    backend = OpenVinoBackend(threads=2, precision=request.param)
    if request.param == "bf16" and backend.precision != "bf16":
        pytest.skip("this processor has no bf16")
    return backend


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]) -> Release:
    """Return a release of the tiny network."""
    return make_release(files={"model.onnx": tiny_network(bias=0.3)})


@pytest.fixture
def session(backend: OpenVinoBackend, release: Release) -> OpenVinoSession:
    """Return a session of two streams."""
    return backend.load(release, PLAN)


def streams(session: OpenVinoSession) -> list[int]:
    """Return the free streams."""
    return sorted(session._free.get_nowait() for _ in range(session._free.qsize()))


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_forms_answer_as_the_general_form_does(session: OpenVinoSession, order: tuple[bool, bool]) -> None:
    """Cold, warm, alone and cold again, an image gets the same answer to the last bit, on every stream."""
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (1, *SHAPE, 3), np.uint8) for _ in range(3)]
    cold = [session.infer(image, 0) for image in images]

    def check() -> None:
        for image, expected in zip(images, cold, strict=True):
            for lane, alone in ((0, False), (1, False), (2, False), (0, True)):
                assert np.array_equal(session.infer(image, lane, alone=alone), expected)

    for alone in order:
        for copy in range(1 if alone else 2):
            assert session.warm(SHAPE, alone=alone, copy=copy)
            assert session.warm(SHAPE, alone=alone, copy=copy)
            check()
        assert not session.warm(SHAPE, alone=alone, copy=1 if alone else 2)
    assert len(session._forms) == 3
    for alone in order:
        for copy in range(1 if alone else 2):
            session.forget(SHAPE, alone=alone, copy=copy)
            check()
    assert session._forms == {}


@pytest.mark.parametrize("alone", [False, True])
def test_a_form_that_answers_otherwise_is_refused(
    session: OpenVinoSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, alone: bool
) -> None:
    """A form whose probe differs by one bit never serves, and the log says so."""
    run = module._run

    def differ(request: Any, image: np.ndarray) -> np.ndarray:
        answer = run(request, image)
        if request.get_compiled_model().inputs[0].partial_shape.is_static:
            answer.flat[0] = np.nextafter(answer.flat[0], np.inf)
        return answer

    before = session.infer(IMAGE, 0)
    monkeypatch.setattr(module, "_run", differ)
    assert not session.warm(SHAPE, alone=alone)
    assert "answers otherwise" in caplog.text
    assert session._forms == {}
    assert np.array_equal(session.infer(IMAGE, 0, alone=alone), before)


@pytest.mark.parametrize("alone", [False, True])
def test_a_form_that_cannot_be_compiled_changes_nothing(session: OpenVinoSession, *, alone: bool) -> None:
    """The failure is a BackendError, and images of the shape are answered as before; later it may succeed."""
    before, compile_one = session.infer(IMAGE, 0), session._compile

    def fail(*_: object) -> None:
        msg = "no memory"
        raise RuntimeError(msg)

    session._compile = fail
    with pytest.raises(BackendError, match="64 x 96"):
        session.warm(SHAPE, alone=alone)
    assert np.array_equal(session.infer(IMAGE, 0, alone=alone), before)
    session._compile = compile_one
    assert session.warm(SHAPE, alone=alone)


def test_no_stream_is_lost_by_errors(session: OpenVinoSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """After more failing calls than there are streams, and failing measurements, every stream is there."""
    run = module._run

    def fail(*_: object) -> np.ndarray:
        msg = "broken"
        raise RuntimeError(msg)

    session.warm(SHAPE)
    for wrong in (np.zeros((1, 64, 96, 4), np.uint8), np.zeros((1, 64, 96, 4), np.uint8), IMAGE):
        if wrong is IMAGE:
            monkeypatch.setattr(module, "_run", fail)
        for lane in range(3):
            with pytest.raises(BackendError):
                session.infer(wrong, lane)
    with pytest.raises(BackendError):
        session.warm(SHAPE, alone=True)
    monkeypatch.setattr(module, "_run", run)
    assert session.infer(IMAGE, 0).shape == (1, 6, 6)
    assert streams(session) == [0, 1]


def test_a_runtime_that_hangs_is_an_error(session: OpenVinoSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a stream in time the caller hears of it instead of waiting for ever."""
    monkeypatch.setattr(module, "STREAM_DEADLINE_S", 0.0)
    assert streams(session) == [0, 1]
    with pytest.raises(BackendError, match="does not answer"):
        session.infer(IMAGE, 0)


def test_a_form_is_measured_beside_calls(session: OpenVinoSession) -> None:
    """Making a form for lone calls takes a stream of its own to measure with: no call finds its request busy."""
    session.warm(SHAPE)
    expected, stop = session.infer(IMAGE, 0), threading.Event()

    def call() -> int:
        for count in range(20_000):
            assert np.array_equal(session.infer(IMAGE, count % 3), expected)
            if stop.is_set():
                break
        return count

    with ThreadPoolExecutor(1) as pool:  # one caller on two streams, so that measuring never starves
        calls = pool.submit(call)
        try:
            for _ in range(3):
                session.warm(SHAPE, alone=True)
                session.forget(SHAPE, alone=True)
        finally:
            stop.set()
        assert calls.result(60) >= 0
    assert streams(session) == [0, 1]


def test_closing_while_calls_run(session: OpenVinoSession) -> None:
    """A call beside ``close`` is answered as ever or refused, never wrong; afterwards nothing runs or is made."""
    session.warm(SHAPE)
    expected, begun = session.infer(IMAGE, 0), threading.Barrier(3)

    def call(lane: int) -> int:
        begun.wait(20)
        for count in range(100_000):
            try:
                assert np.array_equal(session.infer(IMAGE, lane), expected)
            except BackendError:
                return count
        return -1

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call, lane) for lane in (0, 1)]
        begun.wait(20)
        session.close()
        assert all(each.result(60) >= 0 for each in calls)
    assert not session.warm(SHAPE)
    assert not session.warm(SHAPE, alone=True)
    assert streams(session) == [0, 1]


@pytest.mark.parametrize("alone", [False, True])
def test_closing_while_a_form_is_made(session: OpenVinoSession, *, alone: bool) -> None:
    """Neither a form that is compiled, nor one that is about to be, stays behind or fails unforeseen."""
    compile_one = session._compile

    def close_first(*arguments: object) -> Any:
        session.close()
        return compile_one(*arguments)

    session._compile = close_first
    with pytest.raises(BackendError, match="closed session"):
        session.warm(SHAPE, alone=alone)
    assert session._forms == {}
    with pytest.raises(BackendError, match="closed session"):
        compile_one(Variant(SHAPE, 1))


@pytest.mark.parametrize("wrong", ["file", "form"])
def test_a_form_that_was_read_and_disagrees_is_compiled(
    tmp_path: Path, backend: OpenVinoBackend, release: Release, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Only if that disagrees as well is there none; the file is removed."""
    compiled = CompiledNetworks(tmp_path)
    how = {"stride": release.contract.stride, "precision": backend.precision}
    data = release.files["model.onnx"]
    assert compile_into(compiled, runtime(), data, [Variant(SHAPE, 1)], **how)
    network = Network(runtime(), data, compiled=compiled, **how)
    session = module.OpenVinoSession(network, PLAN, threads=2, weights=data.nbytes)
    verdicts = [False, wrong == "file"]
    monkeypatch.setattr(session, "_agrees", lambda *_: verdicts.pop(0))
    assert session.warm(SHAPE) == (wrong == "file")
    assert verdicts == []
    assert not compiled.has(network.key(Variant(SHAPE, 1)))


def test_costs_grow_with_pixels_and_weights(backend: OpenVinoBackend, release: Release) -> None:
    """Every form is one network, whoever runs it."""
    session = backend.load(release, PLAN)
    costs = {session.shape_cost(SHAPE, alone=alone, copy=copy) for alone, copy in ((False, 0), (False, 1), (True, 0))}
    assert len(costs) == 1
    assert session.shape_cost((640, 480)) > session.shape_cost((320, 480)) > 0


def test_lanes_that_run_one_shape_take_turns_through_its_copies(
    session: OpenVinoSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that overlap run on different networks: the copies, then the form for lone calls, then the general one."""
    for alone, copy in ((False, 0), (True, 0)):
        assert session.warm(SHAPE, alone=alone, copy=copy)
    run, used, both = module._run, [], threading.Barrier(2)

    def meet(request: Any, image: np.ndarray) -> np.ndarray:
        used.append(request)
        both.wait(20)
        return run(request, image)

    monkeypatch.setattr(module, "_run", meet)
    lane, alone = (session._forms[module._Key(SHAPE, alone, 0)].request for alone in (False, True))

    def together() -> set[Any]:
        used.clear()
        with ThreadPoolExecutor(2) as pool:
            answers = [call.result(60) for call in [pool.submit(session.infer, IMAGE, each) for each in (0, 1)]]
        assert np.array_equal(*answers)
        return set(used)

    assert together() == {lane, alone}
    session.forget(SHAPE, alone=True)
    found = together()
    assert lane in found
    assert len(found) == 2
    assert found - {lane} <= set(session._general)


def test_a_form_forgotten_during_a_call_serves_no_further_one(
    session: OpenVinoSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that runs on it ends as ever; the next takes the general form."""
    session.warm(SHAPE)
    run, used = module._run, []

    def forget(request: Any, image: np.ndarray) -> np.ndarray:
        used.append(request)
        session.forget(SHAPE)
        return run(request, image)

    monkeypatch.setattr(module, "_run", forget)
    assert np.array_equal(session.infer(IMAGE, 0), session.infer(IMAGE, 0))
    assert used[0] not in session._general
    assert used[1] in session._general
    assert session._idle[SHAPE, False] == []


def test_shapes_that_are_made_side_by_side_do_not_mix(session: OpenVinoSession) -> None:
    """They are compiled from one network, which has one shape at a time: each form is kept and takes its own images."""
    shapes = [(32 * rows, 32 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
    with ThreadPoolExecutor(len(shapes)) as pool:
        assert list(pool.map(session.warm, shapes)) == [True] * len(shapes)
    for shape in shapes:
        request = session._forms[module._Key(shape, alone=False, copy=0)].request
        assert tuple(request.get_compiled_model().inputs[0].shape) == (1, *shape, 3)
