"""Results of swap measurements, made up."""

from __future__ import annotations

from typing import Any

MACHINE = {"date": "2026-01-02 03:04 UTC", "commit": "abc", "cpu": "A CPU", "cores": 2}


def a_swap(number: int, **changes: Any) -> dict[str, Any]:
    """Return one of many quiet swaps; its 60 latencies are 10 ms but for one of 20."""
    latencies = [10.0] * 59 + [20.0]
    return {
        "action": "rollback" if number % 10 == 9 else "promote",
        "window": (3.0 * number, 3.0 * number + 1.5),
        "took_ms": 80.0,
        "first_ms": 300.0,
        "prepared_ms": 100.0,
        "skew_ms": 3.0,
        "holds_ms": [12.0, 14.0],
        "before": [10.0],
        "during": latencies,
        "control": latencies,
        "gap_ms": 100.0,
        "control_gap_ms": 90.0,
        "rss": {"replica-1": 4e8, "replica-2": 4e8},
        "pss": {"replica-1": 2e8, "replica-2": 2e8},
    } | changes


def a_piece(swaps: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a piece in which every promise is kept."""
    return {
        "swaps": [a_swap(number) for number in range(60)] if swaps is None else swaps,
        "sent": 2500,
        "answered": 2500,
        "failures": {},
        "wrong": 0,
        "wrong_examples": {},
        "regressions": 0,
        "regressions_all": 0,
        "aborted_holds": 0,
        "late_p99_ms": 1.0,
    } | changes
