"""The measurement of a GPU: its own parts on a queue of the CPU, its arithmetic, and what it says without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gpu
import numpy as np
import pytest

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.preprocess import letterbox
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


def test_the_lanes_do_the_engines_work() -> None:
    """Every lane runs full batches and closes its session behind it."""
    backend = FakeBackend(plan=Plan(2, 4))
    images = [letterbox(np.zeros((48, 64, 3), np.uint8), CONTRACT)]
    rate = gpu.lanes_rate(backend, release(), Plan(2, 4), images, 0.05)
    assert rate.rate > 0
    assert {(call.size, call.shape) for call in backend.calls} == {(4, (64, 64))}
    assert {call.lane for call in backend.calls} == {0, 1}
    assert backend.sessions[0].closed


def test_the_shape_that_most_pictures_have(tmp_path: Path) -> None:
    """Only its pictures are run raw, so that one batch holds them."""
    cv2 = pytest.importorskip("cv2")
    paths = []
    for number, size in enumerate([(32, 64), (64, 32), (32, 64)]):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.zeros((*size, 3), np.uint8))
    chosen = gpu.common_shape(paths, release())
    assert [tensor.shape for tensor, _ in chosen] == [(32, 64, 3)] * 2


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
