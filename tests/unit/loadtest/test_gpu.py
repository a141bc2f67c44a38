"""The measurement of a GPU: its own parts on a queue of the CPU, its arithmetic, and what it says without a GPU."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - pytest reads it
from typing import TYPE_CHECKING

import gpu
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.backends.torch_fake_queue import FakeQueue
from models.engine.preprocess import letterbox
from models.errors import BackendError
from models.types import Contract, Release, Thresholds

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
CONTRACT = Contract("detect", ("apple",), 32, 64, "end2end")


def release(files: dict[str, np.ndarray] | None = None) -> Release:
    """Return a release with these files."""
    return Release("till", "1", "a" * 64, CONTRACT, Thresholds(), files or {})


def test_without_a_gpu_it_says_so_and_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured on a CPU under a GPU's name."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main(["--json"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "needs an NVIDIA GPU" in said.err


def test_a_rate_is_what_was_done_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run warms up; the clock runs from then to the end of the last one."""
    moments: Iterator[float] = iter([0.0, 0.0, 0.5, 1.0, 1.5])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(moments))
    assert gpu.timed(lambda: 3, 1.2) == pytest.approx(9 / 1.5)


def test_the_lanes_do_the_engines_work() -> None:
    """Every lane runs full batches and closes its session behind it."""
    backend = FakeBackend(plan=Plan(2, 4))
    images = [letterbox(np.zeros((48, 64, 3), np.uint8), CONTRACT)]
    rate = gpu.lanes_rate(backend, release(), Plan(2, 4), images, 0.05)
    assert rate.rate > 0
    assert {(call.size, call.shape) for call in backend.calls} == {(4, (64, 64))}
    assert {call.lane for call in backend.calls} == {0, 1}
    assert backend.sessions[0].closed


def test_raw_runs_count_their_images() -> None:
    """A burst of ONNX Runtime's runs does what it says it has done."""
    nodes = [helper.make_node("Cast", ["images"], ["detections"], to=TensorProto.FLOAT)]
    ends = [
        helper.make_tensor_value_info(name, kind, ["n", "h", "w", 3])
        for name, kind in (("images", TensorProto.UINT8), ("detections", TensorProto.FLOAT))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.checker.check_model(model)
    files = {"model.onnx": np.frombuffer(model.SerializeToString(), np.uint8)}
    burst = gpu.raw_onnxruntime(release(files), (32, 64), 4, FakeQueue(), [("CPUExecutionProvider", {})])
    assert burst() == gpu.BURST * 4


def test_the_shape_that_most_pictures_have(tmp_path: Path) -> None:
    """Only its pictures are run raw, so that one batch holds them."""
    cv2 = pytest.importorskip("cv2")
    paths = []
    for number, size in enumerate([(32, 64), (64, 32), (32, 64)]):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.zeros((*size, 3), np.uint8))
    chosen = gpu.common_shape(paths, release())
    assert [tensor.shape for tensor, _ in chosen] == [(32, 64, 3)] * 2


WORKER = """
import sys
print("ready", flush=True)
sys.stdin.readline()
print('{"rate": 5.0}')
"""


def test_replicas_start_together_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process says that it is ready, waits for the start, and says its rate; none is left behind."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(gpu, "__file__", str(script))
    options = gpu.parse(["--release", str(tmp_path)])
    assert gpu.replicas_rate(3, options) == gpu.Rate("replicas", 3, 0, 15.0)


@pytest.mark.parametrize("script", ["", WORKER.replace("print('{", "print('")])
def test_a_replica_that_fails_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """One that ends at once, and one that says nonsense, end the measurement."""
    path = tmp_path / "worker.py"
    path.write_text(script)
    monkeypatch.setattr(gpu, "__file__", str(path))
    with pytest.raises(BackendError, match="stands above"):
        gpu.replicas_rate(2, gpu.parse(["--release", str(tmp_path)]))


@pytest.mark.parametrize(
    ("rates", "wanted"), [([100, 190, 300, 310], 4), ([100, 101, 99, 100], 1), ([100, 200, 400, 800], 8)]
)
def test_replicas_are_wanted_while_they_pay(rates: list[float], wanted: int) -> None:
    """The fewest within five percent of what more would give."""
    assert gpu.wanted_replicas([gpu.Rate("replicas", 2**i, 0, rate) for i, rate in enumerate(rates)]) == wanted


def test_the_report_names_machine_goal_and_answer() -> None:
    """Markdown with a row a rate and the two sentences that matter."""
    rate = {"what": "lanes", "lanes": 2, "batch": 16, "rate": 900.0}
    text = gpu.markdown(
        {
            "machine": {"date": "d", "commit": "c", "gpu": "G", "cpu": "C", "cores": 16},
            "backend": "torch",
            "precision": "fp16",
            "shape": (480, 640),
            "raw": rate | {"rate": 1000.0},
            "rates": [rate],
            "lanes_of_raw": 0.9,
            "replicas_of_raw": 0.5,
            "wanted_replicas": 4,
        }
    )
    assert "| lanes | 2 | 16 | 900 | 0.90 |" in text
    assert "wants 4 of them" in text


def test_options_that_make_no_sense_are_refused() -> None:
    """Runs stay bounded in time and in processes."""
    for arguments in (["--seconds", "0"], ["--seconds", "1000"], ["--most-replicas", "0"], ["--backend", "openvino"]):
        with pytest.raises(SystemExit) as caught:
            gpu.main(arguments)
        assert caught.value.code == 2
