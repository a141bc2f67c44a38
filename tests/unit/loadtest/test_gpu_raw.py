"""The raw rate of a GPU, on a queue of the CPU."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - pytest reads it

import gpu_raw
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.engine.backends.torch_fake_queue import FakeQueue
from models.types import Contract, Release, Thresholds

pytest.importorskip("torch")


def test_a_rate_is_what_was_done_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run warms up; the clock runs from then to the end of the last one."""
    moments: Iterator[float] = iter([0.0, 0.0, 0.5, 1.0, 1.5])
    monkeypatch.setattr(gpu_raw.time, "perf_counter", lambda: next(moments))
    assert gpu_raw.timed(lambda: 3, 1.2) == pytest.approx(9 / 1.5)


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
    contract = Contract("detect", ("apple",), 32, 64, "end2end")
    release = Release("till", "1", "a" * 64, contract, Thresholds(), files)
    burst = gpu_raw.raw_onnxruntime(release, (32, 64), 4, FakeQueue(), [("CPUExecutionProvider", {})])
    assert burst() == gpu_raw.BURST * 4
