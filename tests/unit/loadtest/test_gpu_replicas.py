"""Replicas that share a GPU: started together, added up, ended, and how many of them pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gpu
import gpu_replicas
import pytest
from gpu_raw import Rate

from models.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")

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
    monkeypatch.setattr(gpu_replicas, "SCRIPT", script)
    options = gpu.parse(["--release", str(tmp_path)])
    assert gpu_replicas.replicas_rate(3, options) == Rate("replicas", 3, 0, 15.0)


@pytest.mark.parametrize("script", ["", WORKER.replace("print('{", "print('")])
def test_a_replica_that_fails_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """One that ends at once, and one that says nonsense, end the measurement."""
    path = tmp_path / "worker.py"
    path.write_text(script)
    monkeypatch.setattr(gpu_replicas, "SCRIPT", path)
    with pytest.raises(BackendError, match="stands above"):
        gpu_replicas.replicas_rate(2, gpu.parse(["--release", str(tmp_path)]))


@pytest.mark.parametrize(
    ("rates", "wanted"), [([100, 190, 300, 310], 4), ([100, 101, 99, 100], 1), ([100, 200, 400, 800], 8)]
)
def test_replicas_are_wanted_while_they_pay(rates: list[float], wanted: int) -> None:
    """The fewest within five percent of what more would give."""
    assert gpu_replicas.wanted_replicas([Rate("replicas", 2**i, 0, rate) for i, rate in enumerate(rates)]) == wanted
