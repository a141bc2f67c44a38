"""The figures of a run: percentiles that were measured, rates by their own definition, failures by name."""

from __future__ import annotations

import pytest
from connection import Outcome
from hypothesis import given
from hypothesis import strategies as st
from loops import Exchange
from report import percentile, show, summarize

URL = "http://127.0.0.1:1"
GOOD = Outcome(200, "1")


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0.01, 1))
def test_percentile_is_a_measured_value(values: list[float], share: float) -> None:
    """At least the share of all values lies at or below the percentile, and it is one of them."""
    ordered = sorted(values)
    found = percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


def test_no_values_have_no_percentile() -> None:
    """Nothing answered is not answered in 0 ms."""
    assert percentile([], 0.5) is None


def test_closed_loop_counts_all_good_answers() -> None:
    """The rate is good answers over the whole run; failures are counted by status and code."""
    exchanges = [Exchange(0.0, 0.0, 0.010 * n, GOOD) for n in range(1, 101)]
    exchanges += [Exchange(0.0, 0.0, 0.5, Outcome(500, "", "bug")), Exchange(0.0, 0.0, 0.5, Outcome(0, code="timeout"))]
    report = summarize(URL, exchanges, clients=4, seconds=10.0, cpu_s=0.0102)

    assert (report.mode, report.sent, report.answered, report.failed, report.rate) == ("closed", 102, 100, 2, 10.0)
    assert [report.p50_ms, report.p95_ms, report.p99_ms, report.most_ms] == pytest.approx([500.0, 950.0, 990.0, 1000.0])
    assert report.failures == {"0 timeout": 1, "500 bug": 1}
    assert report.versions == {"1": 100}
    assert abs(report.generator_cpu_ms - 0.1) < 1e-9


def test_open_loop_counts_answers_only_while_the_schedule_lasts() -> None:
    """What is answered while the queue drains says nothing of the goodput under load."""
    schedule = [1.0, 2.0, 3.0, 4.0]
    late = [Exchange(due, 0.001, 0.5, GOOD) for due in schedule[:3]] + [Exchange(4.0, 0.001, 2.0, GOOD)]
    report = summarize(URL, late, clients=0, seconds=6.0, schedule=schedule)

    assert (report.mode, report.offered, report.answered, report.rate) == ("open", 1.0, 4, 0.75)
    assert report.achieved == 0.75  # the last was sent a moment after the window
    assert report.late_p99_ms == 1.0


def test_refusals_are_no_failures_and_have_times_of_their_own() -> None:
    """429 counts apart, with its latency and with what lacks Retry-After."""
    exchanges = [
        Exchange(0.1, 0.0, 0.002, Outcome(429, "", "overloaded", retry_after=True)),
        Exchange(0.2, 0.0, 0.004, Outcome(429, "", "overloaded")),
    ]
    report = summarize(URL, exchanges, clients=0, seconds=1.0, schedule=[0.1, 0.2])

    assert (report.refused, report.failed, report.without_retry_after) == (2, 0, 1)
    assert (report.refusal_p50_ms, report.refusal_most_ms) == (2.0, 4.0)
    assert report.p50_ms is None
    assert "1 without Retry-After" in show(report)


def test_an_empty_run_has_a_report() -> None:
    """Nothing sent is no division by zero."""
    report = summarize(URL, [], clients=1, seconds=0.0, schedule=[])

    assert (report.sent, report.rate, report.offered) == (0, 0.0, 0.0)
    assert URL in show(report)
