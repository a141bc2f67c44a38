"""The load tools are scripts beside the packages: their folder is put on the path, as running one of them does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "loadtest"))
sys.path.insert(0, str(Path(__file__).resolve().parent))


def a_round(raw: float, own: float, peer: float) -> dict[str, Any]:
    """Return one round's numbers; CPU an image is 1000 over the rate."""

    def server(rate: float, p50_ms: float) -> dict[str, Any]:
        """Return one server's numbers."""
        peak = {"rate": rate, "clients": 8, "generator_cpu_ms": 0.2}
        return {"ready_s": 9.0, "lone": {"p50_ms": p50_ms}, "peak": peak, "cpu_ms": 1000 / rate, "pss_mib": 400.0}

    return {
        "raw_before": {"rate": raw, "cpu_ms": 1000 / raw},
        "raw_after": {"rate": raw, "cpu_ms": 1000 / raw},
        "in_process": {"rate": raw * 0.9, "cpu_ms": 25.0, "clients": 4, "lone_p50_ms": 15.0},
        "servers": {"steelyard": server(own, 16.0), "fastapi": server(peer, 32.0)},
    }


def a_result(**more: Any) -> dict[str, Any]:
    """Return a whole result of two rounds on a machine whose speed halves in between."""
    machine = {
        "date": "2026-01-02 03:04 UTC",
        "commit": "abc",
        "cpu": "A CPU",
        "cores": 2,
        "memory_gib": 24.0,
        "gpu": "none",
        "python": "3.11",
        "versions": {"ray": "2"},
    }
    rounds = [a_round(100.0, 85.0, 30.0), a_round(50.0, 42.5, 15.0)]
    return {"machine": machine, "what": "Everything.", "rounds": rounds, **more}


@pytest.fixture
def make_result() -> Callable[..., dict[str, Any]]:
    """Give a maker of whole results."""
    return a_result
