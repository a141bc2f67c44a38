"""What one run of load measured, as numbers and as lines for people."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from connection import OK, TOO_MANY_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loops import Exchange


@dataclass(frozen=True, slots=True)
class Report:
    """What one run measured. Latencies are of answers 200, in milliseconds, from the scheduled send.

    mode: ``closed`` or ``open``. clients: of a closed loop, else 0. offered: requests a second that the schedule
    asked for, None in a closed loop. achieved: requests a second that were sent. rate: answers 200 a second, those of
    an open loop counted only while the schedule lasts. refused: answers 429, which are no failures in an open loop;
    without_retry_after of them lacked the header. late_p99_ms: how long after its time a request was sent.
    generator_cpu_ms: CPU of the generator a request.
    """

    url: str
    mode: str
    clients: int
    seconds: float
    sent: int
    answered: int
    refused: int
    failed: int
    offered: float | None
    achieved: float
    rate: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    most_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    refusal_most_ms: float | None
    without_retry_after: int
    late_p99_ms: float | None
    generator_cpu_ms: float
    versions: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile of a sorted sequence: a value that was measured, never one in between.

    Args:
        ordered: values in rising order.
        share: 0 to 1.

    Returns:
        None for no values at all.
    """
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarize(
    url: str,
    exchanges: Sequence[Exchange],
    *,
    clients: int,
    seconds: float,
    schedule: Sequence[float] | None = None,
    cpu_s: float = 0.0,
) -> Report:
    """Return the report of a run.

    Args:
        url: named in the report.
        exchanges: every request of the run.
        clients: of a closed loop.
        seconds: from the run's beginning to its last answer.
        schedule: seconds at which an open loop was to send; None for a closed loop.
        cpu_s: CPU seconds that the generator took.
    """
    good = [exchange for exchange in exchanges if exchange.outcome.status == OK]
    refused = [exchange for exchange in exchanges if exchange.outcome.status == TOO_MANY_REQUESTS]
    bad = Counter(
        f"{exchange.outcome.status} {exchange.outcome.code}".strip()
        for exchange in exchanges
        if exchange.outcome.status not in {OK, TOO_MANY_REQUESTS}
    )
    latencies = _milliseconds(good)
    refusals = _milliseconds(refused)
    lateness = sorted(1e3 * exchange.late_s for exchange in exchanges)
    window = seconds if schedule is None else (schedule[-1] if schedule else 0.0)
    in_time = sum(exchange.due + exchange.seconds <= window for exchange in good)
    return Report(
        url=url,
        mode="closed" if schedule is None else "open",
        clients=clients,
        seconds=seconds,
        sent=len(exchanges),
        answered=len(good),
        refused=len(refused),
        failed=sum(bad.values()),
        offered=None if schedule is None else _a_second(len(schedule), window),
        achieved=_a_second(sum(exchange.due + exchange.late_s <= window for exchange in exchanges), window),
        rate=_a_second(len(good) if schedule is None else in_time, window),
        p50_ms=percentile(latencies, 0.50),
        p95_ms=percentile(latencies, 0.95),
        p99_ms=percentile(latencies, 0.99),
        most_ms=latencies[-1] if latencies else None,
        refusal_p50_ms=percentile(refusals, 0.50),
        refusal_p99_ms=percentile(refusals, 0.99),
        refusal_most_ms=refusals[-1] if refusals else None,
        without_retry_after=sum(not exchange.outcome.retry_after for exchange in refused),
        late_p99_ms=None if schedule is None else percentile(lateness, 0.99),
        generator_cpu_ms=1e3 * cpu_s / len(exchanges) if exchanges else 0.0,
        versions=dict(sorted(Counter(exchange.outcome.version or "?" for exchange in good).items())),
        failures=dict(sorted(bad.items())),
    )


def show(report: Report) -> str:
    """Return the report as lines for people."""
    load = f"{report.clients} clients" if report.offered is None else f"{report.offered:.1f} requests/s offered"
    lines = [
        f"{report.url}: {load}, {report.seconds:.1f} s",
        (
            f"  {report.rate:.1f} answers/s   {report.answered} answered   {report.refused} refused   "
            f"{report.failed} failed   generator {report.generator_cpu_ms:.2f} ms CPU a request"
        ),
    ]
    if report.offered is not None:
        lines.append(f"  {report.achieved:.1f} requests/s sent, p99 {_text(report.late_p99_ms)} ms after their time")
    if report.answered:
        lines.append(
            f"  latency ms: p50 {_text(report.p50_ms)}   p95 {_text(report.p95_ms)}   p99 {_text(report.p99_ms)}   "
            f"most {_text(report.most_ms)}"
        )
        lines.append("  versions: " + _counts(report.versions))
    if report.refused:
        lines.append(
            f"  refused after ms: p50 {_text(report.refusal_p50_ms)}   p99 {_text(report.refusal_p99_ms)}   "
            f"most {_text(report.refusal_most_ms)}; {report.without_retry_after} without Retry-After"
        )
    if report.failures:
        lines.append("  failures: " + _counts(report.failures))
    return "\n".join(lines)


def _milliseconds(exchanges: Sequence[Exchange]) -> list[float]:
    return sorted(1e3 * exchange.seconds for exchange in exchanges)


def _a_second(number: int, seconds: float) -> float:
    return number / seconds if seconds > 0 else 0.0


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x {number}" for name, number in counts.items())
