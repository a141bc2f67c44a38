"""Verdicts: ratios are taken within a round, and what was not measured is neither met nor missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goals import at_least, at_most, judge, paired
from hypothesis import given
from hypothesis import strategies as st
from table import SERVER_COLUMNS, markdown, number, server_rows

MakeResult = Callable[..., dict[str, Any]]


def verdicts(result: dict[str, Any]) -> dict[str, tuple[float | None, bool | None]]:
    """Return value and verdict by name."""
    return {verdict.name: (verdict.value, verdict.met) for verdict in judge(result)}


def test_a_machine_that_drifts_does_not_change_the_ratios(make_result: MakeResult) -> None:
    """Each round's ratio stands for itself: half the speed in the second round changes nothing."""
    found = verdicts(make_result())

    assert found["peak ÷ raw engine"] == (pytest.approx(0.85), True)
    assert found["peak ÷ FastAPI + Ultralytics OpenVINO"] == (pytest.approx(85 / 30), True)
    assert found["lone p50 ÷ FastAPI + Ultralytics OpenVINO"] == (pytest.approx(0.5), True)
    assert found["CPU an image ÷ raw engine"] == (pytest.approx(1 / 0.85), True)
    assert found["ready, s"] == (9.0, True)


def test_what_was_not_measured_has_no_verdict(make_result: MakeResult) -> None:
    """A peer that was left out, or a run that was skipped, neither meets nor misses a goal."""
    found = verdicts(make_result())

    assert found["peak ÷ PyTriton"] == (None, None)
    assert found["idle, % of one core"] == (None, None)


def test_a_refusal_at_a_steady_rate_is_a_miss(make_result: MakeResult) -> None:
    """At 60 % of peak nobody may be turned away."""
    load = {"p99_ms": 40.0, "refused": 1, "failed": 0, "sent": 2400}
    found = verdicts(make_result(steady={"load": load, "lone_p50_ms": 16.0, "peak": 80.0}))

    assert found["requests at 60 % of peak not answered"] == (1.0, False)
    assert found["p99 at 60 % of peak ÷ lone p50"] == (2.5, True)


def test_a_flood_is_judged_by_goodput_and_refusals(make_result: MakeResult) -> None:
    """Shedding keeps the goodput, is quick, and says when to come again."""
    load = {
        "rate": 70.0,
        "refusal_p99_ms": 60.0,
        "without_retry_after": 0,
        "failed": 0,
        "p99_ms": 4000.0,
    }
    found = verdicts(make_result(flooded={"load": load, "peak": 80.0}))

    assert found["goodput at 130 % ÷ peak"] == (0.875, False)
    assert found["refusal at 130 %, p99 ms"] == (60.0, False)
    assert found["refusals without Retry-After"] == (0.0, True)


@given(value=st.floats(0, 100), goal=st.floats(0, 100))
def test_a_goal_is_met_on_its_own_side(value: float, goal: float) -> None:
    """At the goal itself both kinds are met, elsewhere exactly one."""
    least, most = at_least("x", value, goal).met, at_most("x", value, goal).met

    assert least or most
    assert (least and most) == (value == goal)


def test_no_rounds_have_no_ratio() -> None:
    """Nothing divided by nothing is nothing."""
    assert paired([], lambda _: 1.0, lambda _: 1.0) is None
    assert paired([{}], lambda _: 1.0, lambda _: 0.0) is None


def test_the_report_holds_a_row_a_contestant_and_a_goal(make_result: MakeResult) -> None:
    """Every row has a cell a column; misses stand out; notes follow."""
    text = markdown(make_result(notes=["not compared with x"], idle={"percent": 20.0}))
    rows = server_rows(make_result()["rounds"], {})

    assert [row[0] for row in rows] == ["raw engine", "in one process, from JPEG", "steelyard", "fastapi"]
    assert all(len(row) == len(SERVER_COLUMNS) for row in rows)
    assert "| idle, % of one core | 20 | ≤ 15 | **missed** |" in text
    assert "| peak ÷ PyTriton | - | ≥ 1.80 | not measured |" in text
    assert text.endswith("- not compared with x\n")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (0.8512, "0.85"), (12.345, "12.3"), (30000.4, "30000"), (4.0, "4")]
)
def test_numbers_keep_the_digits_that_count(value: float | None, text: str) -> None:
    """Three digits are what such a measurement holds."""
    assert number(value, 3) == text
