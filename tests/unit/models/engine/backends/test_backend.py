"""What the protocol promises, held against every runtime that runs here.

The lanes of a GPU run on a fake queue everywhere, and on the GPU where there is one.
"""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.errors import BackendError, ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engine.backends.backend import Backend, Session
    from models.types import Release

IMGSZ = 96
BATCH = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
MOVED_PIXELS, MOVED_SCORE = 0.5, 0.01
"""How far warming a shape may move a box and a score."""
LAST_DIGITS = 1e-4
"""How far company may move an answer where a batch is one tensor: float32's last digits, in pixels."""
TWO_LANES = Plan(2, 5)


@dataclass(frozen=True)
class Kit:
    """One runtime under test.

    network: file of a release that it reads, None where it reads none. moved: pixels by which company may move an
    answer, 0 meaning equal to the last bit. gpu: whether it needs one.
    """

    name: str
    package: str
    make: Callable[[], Backend]
    network: str | None
    moved: float = 0.0
    gpu: bool = False

    def __str__(self) -> str:
        """Return the name of the test's parameter."""
        return self.name


def openvino() -> Backend:
    """Return OpenVINO in fp32 with two threads."""
    from models.engine.backends.openvino import OpenVinoBackend  # noqa: PLC0415 - only where it is installed

    return OpenVinoBackend(threads=2, precision="fp32")


def openvino_bf16() -> Backend:
    """Return OpenVINO in bf16 with two threads, or skip where the processor has none."""
    from models.engine.backends.openvino import OpenVinoBackend  # noqa: PLC0415 - as above

    backend = OpenVinoBackend(threads=2, precision="bf16")
    if backend.precision != "bf16":
        pytest.skip("this processor has no bf16")
    return backend


def onnxruntime() -> Backend:
    """Return ONNX Runtime with two threads."""
    from models.engine.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415 - as above

    return OnnxRuntimeBackend(threads=2)


def onnxruntime_lanes() -> Backend:
    """Return ONNX Runtime with the lanes of a GPU, on the CPU."""
    from models.engine.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415 - as above
    from models.engine.backends.onnxruntime_gpu import GpuOptions  # noqa: PLC0415 - as above
    from models.engine.backends.torch_fake_queue import FakeQueue  # noqa: PLC0415 - as above

    backend = OnnxRuntimeBackend(threads=2)
    backend._gpu, backend._make_queue = GpuOptions("fp32", tensorrt=False, memory=0), FakeQueue
    backend._providers = lambda *_, **__: [("CPUExecutionProvider", {})]
    return backend


def onnxruntime_gpu() -> Backend:
    """Return ONNX Runtime on a GPU."""
    from models.engine.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415 - as above

    return OnnxRuntimeBackend(threads=2, gpu=True)


def torch() -> Backend:
    """Return torch with two threads."""
    from models.engine.backends.torch_runtime import TorchBackend  # noqa: PLC0415 - as above

    return TorchBackend(threads=2)


def torch_lanes() -> Backend:
    """Return torch with the lanes of a GPU, on the CPU."""
    from models.engine.backends.torch_fake_queue import FakeQueue  # noqa: PLC0415 - as above

    backend = torch()
    backend._make_queue = FakeQueue
    return backend


def torch_gpu() -> Backend:
    """Return torch on a GPU, in fp16."""
    from models.engine.backends.torch_runtime import TorchBackend  # noqa: PLC0415 - as above

    return TorchBackend(threads=2, gpu=True)


KITS = [
    Kit("fake", "numpy", lambda: FakeBackend(plan=Plan(2, 5)), None),
    Kit("openvino", "openvino", openvino, "model.onnx"),
    Kit("openvino in bf16", "openvino", openvino_bf16, "model.onnx"),
    Kit("onnxruntime", "onnxruntime", onnxruntime, "model.onnx"),
    Kit("onnxruntime with a GPU's lanes", "onnxruntime", onnxruntime_lanes, "model.onnx", LAST_DIGITS),
    Kit("torch", "torch", torch, "model.safetensors"),
    Kit("onnxruntime on a GPU", "onnxruntime", onnxruntime_gpu, "model.onnx", MOVED_PIXELS, gpu=True),
    Kit("torch with a GPU's lanes", "torch", torch_lanes, "model.safetensors", LAST_DIGITS),
    Kit("torch on a GPU", "torch", torch_gpu, "model.safetensors", MOVED_PIXELS, gpu=True),
]


@pytest.fixture(scope="module", params=KITS, ids=str)
def kit(request: pytest.FixtureRequest) -> Kit:
    """Return each runtime in turn."""
    if importlib.util.find_spec(request.param.package) is None:
        pytest.skip(f"{request.param.package} is not installed")
    if request.param.gpu and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this machine has no GPU")
    return request.param


@pytest.fixture(scope="module")
def backend(kit: Kit) -> Backend:
    """Return the runtime, started."""
    return kit.make()


@pytest.fixture(scope="module")
def make_files(
    kit: Kit, request: pytest.FixtureRequest, tiny_network: Callable[..., np.ndarray]
) -> Callable[..., dict[str, np.ndarray]]:
    """Return a maker of the files that the runtime reads."""
    if kit.network == "model.safetensors":
        return request.getfixturevalue("tiny_weights")
    return lambda **changes: {"model.onnx": tiny_network(**changes)}


@pytest.fixture(scope="module")
def load(
    backend: Backend, make_files: Callable[..., dict[str, np.ndarray]], make_release: Callable[..., Release]
) -> Callable[..., Session]:
    """Return a loader of the tiny network, by default on two lanes of five images."""
    files = make_files()

    def loader(plan: Plan | None = TWO_LANES, **changes: Any) -> Session:
        return backend.load(make_release(**{"files": files, "imgsz": IMGSZ} | changes), plan)

    return loader


@pytest.fixture(scope="module")
def session(load: Callable[..., Session]) -> Session:
    """Return one session that tests share; they leave it as they found it."""
    return load()


def same(kit: Kit, one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two answers are the same, as far as the runtime promises."""
    return np.array_equal(one, other) if not kit.moved else np.allclose(one, other, rtol=0, atol=kit.moved)


def within_the_promise(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether no box moved by more than half a pixel and no score by more than 0.01."""
    moved = np.abs(one - other)
    return bool(moved[..., :4].max() <= MOVED_PIXELS and moved[..., 4].max() <= MOVED_SCORE)


def test_answers_have_the_promised_form(session: Session) -> None:
    """float32 (n, k, 6), finite, and the caller's to write on."""
    answer = session.infer(BATCH, 0)
    assert (answer.dtype, answer.ndim) == (np.float32, 3)
    assert (answer.shape[0], answer.shape[2]) == (5, 6)
    assert np.isfinite(answer).all()
    kept = answer.copy()
    assert answer.flags.writeable
    session.infer(BATCH[::-1].copy(), 0)
    assert np.array_equal(answer, kept)
    answer[:] = 0
    assert np.array_equal(session.infer(BATCH, 0), kept)


@given(
    sides=st.tuples(*[st.sampled_from([32, 64, 96])] * 2),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
    lane=st.integers(0, 1),
    warm=st.booleans(),
    alone=st.booleans(),
)
@settings(max_examples=25)
def test_answers_do_not_depend_on_company(
    kit: Kit, session: Session, sides: tuple[int, int], seeds: list[int], lane: int, *, warm: bool, alone: bool
) -> None:
    """Alone and in any batch, on any lane or on the whole machine, cold and warm, an image gets the same answer."""
    batch = np.stack([np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8) for seed in seeds])
    (session.warm if warm else session.forget)(sides, alone=alone)
    together = session.infer(batch, lane)
    for index in range(len(batch)):
        assert same(kit, session.infer(batch[index : index + 1], 0, alone=alone)[0], together[index])


def test_order_is_kept(kit: Kit, session: Session) -> None:
    """The answers come in the order of the images, and different images get different ones."""
    answers = session.infer(BATCH, 0)
    assert same(kit, session.infer(BATCH[::-1].copy(), 0)[::-1], answers)
    assert not np.array_equal(answers[0], answers[1])


def test_lanes_run_side_by_side(kit: Kit, load: Callable[..., Session]) -> None:
    """Calls on different lanes at once, of different shapes, give what they give one after the other."""
    session = load(Plan(2, 1))
    shapes = (BATCH, BATCH[:, :32, :64].copy())
    expected = [[session.infer(image[None], lane) for image in shapes[lane]] for lane in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda lane: [session.infer(i[None], lane) for i in shapes[lane]], (0, 1)))
    for lane in (0, 1):
        assert all(same(kit, one, other) for one, other in zip(found[lane], expected[lane], strict=True))


def test_warming_moves_nothing_that_counts(load: Callable[..., Session]) -> None:
    """Warming a shape, twice, forgetting it, twice, and meeting a new one keep every answer within the promise."""
    session = load()
    cold = session.infer(BATCH[:1], 0)
    for change in (session.warm, session.warm, session.forget, session.forget):
        for alone in (False, True):
            assert change((64, 96), alone=alone) in {None, False, True}
            assert within_the_promise(session.infer(BATCH[:1], 0, alone=alone), cold)
    assert len(session.infer(np.zeros((1, 32, 64, 3), np.uint8), 0)) == 1
    assert min(session.shape_cost((64, 96), alone=alone) for alone in (False, True)) >= 0


def test_warming_runs_beside_calls(load: Callable[..., Session]) -> None:
    """Shapes are warmed and forgotten while a lane answers, and no answer changes."""
    session = load()
    expected = session.infer(BATCH, 0)
    with ThreadPoolExecutor(1) as pool:
        warming = pool.submit(lambda: [step((64, 96)) for _ in range(5) for step in (session.warm, session.forget)])
        answers = [session.infer(BATCH, 0) for _ in range(20)]
        warming.result(60)
    assert all(within_the_promise(answer, expected) for answer in answers)


def test_close_is_idempotent_and_final(load: Callable[..., Session]) -> None:
    """After close nothing runs, and forgetting is still allowed."""
    session = load()
    session.warm((64, 96))
    session.close()
    session.close()
    session.forget((64, 96))
    with pytest.raises(BackendError, match="closed"):
        session.infer(BATCH[:1], 0)


def test_plans_are_sound(kit: Kit, backend: Backend, load: Callable[..., Session]) -> None:
    """There is a plan, no two are the same, and the first one drives a session that was given none."""
    plans = backend.plans()
    assert len(set(plans)) == len(plans) >= 1
    assert all(plan.lanes >= plan.workers >= 1 <= plan.max_batch for plan in plans)
    assert all(plan.max_batch == 1 for plan in plans if plan.decodes)
    assert load(None).plan == plans[0]
    if not kit.moved and kit.network is not None:
        assert {plan.max_batch for plan in plans} == {1}


def test_bad_files_are_rejected_for_good(
    kit: Kit, load: Callable[..., Session], make_files: Callable[..., dict[str, np.ndarray]]
) -> None:
    """No file, rubbish, a cut file and another network fail at step load, permanently."""
    if kit.network is None:
        pytest.skip("reads no files")
    whole = make_files()
    another = make_files(kind=TensorProto.FLOAT) if kit.network == "model.onnx" else make_files(nc=4)
    for files in (
        {},
        whole | {kit.network: np.frombuffer(b"rubbish", np.uint8)},
        whole | {kit.network: whole[kit.network][: len(whole[kit.network]) // 2]},
        whole | {kit.network: another[kit.network]},
    ):
        with pytest.raises(ReleaseRejectedError) as caught:
            load(files=files)
        assert caught.value.step == "load"


def test_non_finite_weights_come_through(
    kit: Kit, load: Callable[..., Session], make_files: Callable[..., dict[str, np.ndarray]]
) -> None:
    """NaN is not hidden by the runtime: the engine gets to see it."""
    if kit.network is None:
        pytest.skip("has no weights")
    assert np.isnan(load(files=make_files(bias=float("nan"))).infer(BATCH[:1], 0)).any()


def test_a_failing_call_is_a_backend_error(kit: Kit, session: Session) -> None:
    """A batch that the network cannot take fails alone; the session goes on."""
    if kit.network is None:
        pytest.skip("takes everything")
    with pytest.raises(BackendError):
        session.infer(np.zeros((1, 64, 96, 4), np.uint8), 0)
    assert len(session.infer(BATCH[:1], 0)) == 1
