"""What a step of load showed: windows over time, and whether the service followed; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from connection import OK, TOO_MANY_REQUESTS
from report import percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loops import Exchange

WINDOW_S: Final = 5.0
STEADY: Final = 3
"""Windows in a row in which the objective must hold for the service to count as recovered."""
RECOVERY_S: Final = 60.0
"""Time after the step from which the objective must hold again and nobody is refused (seconds)."""
SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steady load. rate: requests a second. seconds: how long."""

    name: str
    rate: float
    seconds: float


def schedule_ends(phases: Sequence[Phase]) -> list[float]:
    """Return the second at which each phase ends."""
    ends: list[float] = []
    for phase in phases:
        ends.append((ends[-1] if ends else 0.0) + phase.seconds)
    return ends


def windows(exchanges: Sequence[Exchange], seconds: float) -> list[dict[str, Any]]:
    """Return a row for every WINDOW_S of ``seconds``, requests counted in the window in which they were due."""
    rows = []
    for number in range(int(seconds // WINDOW_S)):
        begin = number * WINDOW_S
        within = [each for each in exchanges if begin <= each.due < begin + WINDOW_S]
        answered = sorted(1e3 * each.seconds for each in within if each.outcome.status == OK)
        rows.append(
            {
                "at_s": begin,
                "sent": len(within),
                "answered": len(answered),
                "refused": sum(each.outcome.status == TOO_MANY_REQUESTS for each in within),
                "failed": sum(is_failure(each) for each in within),
                "p50_ms": percentile(answered, 0.50),
                "p99_ms": percentile(answered, 0.99),
            }
        )
    return rows


def is_failure(exchange: Exchange) -> bool:
    """Return whether there was neither an answer nor a refusal that says when to come back."""
    return exchange.outcome.status not in {OK, TOO_MANY_REQUESTS}


def judge(
    exchanges: Sequence[Exchange],
    replicas: Sequence[tuple[float, int]],
    phases: Sequence[Phase],
    *,
    objective_s: float,
    capacity: float,
) -> dict[str, Any]:
    """Return what the second of three phases, a step up, and the third, back down, showed.

    replicas: (second, replicas that serve), rising. objective_s: within which 99 of 100 answers are wanted. capacity:
    requests a second of one replica. Times are seconds since the step they belong to, None where it never came to that.
    """
    up, down = schedule_ends(phases)[:2]
    needed = int(-(-phases[1].rate // capacity))
    before = max((count for at, count in replicas if at <= up), default=0)
    settled = [each for each in exchanges if up + RECOVERY_S <= each.due < down]
    after = sorted(1e3 * each.seconds for each in settled if each.outcome.status == OK)
    refused = [each.due - up for each in exchanges if each.outcome.status == TOO_MANY_REQUESTS]
    held = [
        row["p99_ms"] is not None and row["p99_ms"] <= 1e3 * objective_s and not row["refused"]
        for row in windows(exchanges, down)
        if row["at_s"] >= up
    ]
    recovered = next((at for at in range(len(held) - STEADY + 1) if all(held[at : at + STEADY])), None)
    return {
        "requests": len(exchanges),
        "server_errors": sum(each.outcome.status >= SERVER_ERROR for each in exchanges),
        "broken": sum(each.outcome.status == 0 for each in exchanges),
        "other_failures": sum(is_failure(each) and 0 < each.outcome.status < SERVER_ERROR for each in exchanges),
        "refused": len(refused),
        "refused_without_retry_after": sum(
            each.outcome.status == TOO_MANY_REQUESTS and not each.outcome.retry_after for each in exchanges
        ),
        "last_refused_s": max(refused, default=None),
        "refused_after_recovery": sum(at >= RECOVERY_S for at in refused),
        "first_more_s": _first(replicas, lambda at, count: at > up and count > before, up),
        "enough_s": _first(replicas, lambda at, count: at > up and count >= needed, up),
        "most_replicas": max((count for _, count in replicas), default=0),
        "recovered_s": None if recovered is None else recovered * WINDOW_S,
        "windows_missed_later": 0 if recovered is None else held[recovered:].count(False),
        "settled_p50_ms": percentile(after, 0.50),
        "settled_p99_ms": percentile(after, 0.99),
        "back_s": _first(replicas, lambda at, count: at > down and count <= before, down),
        "first_fewer_s": _first_fewer(replicas, down),
    }


def verdicts(judged: dict[str, Any], objective_s: float) -> list[tuple[str, bool]]:
    """Return each goal with whether it was reached."""
    p99 = judged["settled_p99_ms"]
    return [
        ("replicas follow the step", judged["enough_s"] is not None),
        (f"p99 within the objective {RECOVERY_S:.0f} s after the step", p99 is not None and p99 <= 1e3 * objective_s),
        (f"no refusal later than {RECOVERY_S:.0f} s after the step", judged["refused_after_recovery"] == 0),
        ("every refusal says when to come back", judged["refused_without_retry_after"] == 0),
        ("no 5xx", judged["server_errors"] == 0),
        ("no broken connection and no other failure", judged["broken"] + judged["other_failures"] == 0),
        ("replicas go back", judged["back_s"] is not None),
    ]


def _first(replicas: Sequence[tuple[float, int]], true: Any, since: float) -> float | None:
    return next((round(at - since, 1) for at, count in replicas if true(at, count)), None)


def _first_fewer(replicas: Sequence[tuple[float, int]], down: float) -> float | None:
    held = next((count for at, count in reversed(replicas) if at <= down), 0)
    return _first(replicas, lambda at, count: at > down and count < held, down)
