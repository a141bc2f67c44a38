"""The result of a benchmark as Markdown."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from goals import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ABSENT = "-"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the whole report: machine, servers, goals, and what was left out."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"## {machine['date']}, commit {machine['commit']}",
        (
            f"{machine['cpu']}, {machine['cores']} cores shared with the load generator, {machine['memory_gib']} GiB, "
            f"GPU: {machine['gpu']}; Python {machine['python']}, {versions}. {result['what']}"
        ),
        table(SERVER_COLUMNS, server_rows(result["rounds"], result.get("titles", {}))),
        table(("goal", "measured", "wanted", ""), goal_rows(result)),
    ]
    parts += [f"- {note}" for note in result.get("notes", [])]
    return "\n\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; every row has a cell a column."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SERVER_COLUMNS = (
    "median of the rounds",
    "ready s",
    "lone p50 ms",
    "peak images/s",
    "at clients",
    "CPU ms an image",
    "÷ raw",
    "memory MiB",
    "generator's CPU ms",
)


def server_rows(rounds: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[list[str]]:
    """Return a row for the raw engine, one for the engine in one process, and one a server."""
    raw = [each[when] for each in rounds for when in ("raw_before", "raw_after") if each.get(when)]
    raw_rate = _middle([run["rate"] for run in raw])
    rows = [_row("raw engine", rate=raw_rate, cpu_ms=_middle([run["cpu_ms"] for run in raw]), raw=raw_rate)]
    inside = [each["in_process"] for each in rounds if each.get("in_process")]
    if inside:
        rows.append(
            _row(
                "in one process, from JPEG",
                lone=_middle([run.get("lone_p50_ms") for run in inside]),
                rate=_middle([run["rate"] for run in inside]),
                clients=_middle([run["clients"] for run in inside]),
                cpu_ms=_middle([run["cpu_ms"] for run in inside]),
                raw=raw_rate,
            )
        )
    names = dict.fromkeys(name for each in rounds for name in each["servers"])
    for name in names:
        runs = [each["servers"][name] for each in rounds if name in each["servers"]]
        rows.append(
            _row(
                titles.get(name, name),
                ready=_middle([run["ready_s"] for run in runs]),
                lone=_middle([run["lone"]["p50_ms"] for run in runs]),
                rate=_middle([run["peak"]["rate"] for run in runs]),
                clients=_middle([run["peak"]["clients"] for run in runs]),
                cpu_ms=_middle([run["cpu_ms"] for run in runs]),
                raw=raw_rate,
                memory=_middle([run["pss_mib"] for run in runs]),
                generator=_middle([run["peak"]["generator_cpu_ms"] for run in runs]),
            )
        )
    return rows


def goal_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Return a row a goal: what was measured, what is wanted, and whether it is met."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    return [
        [
            verdict.name,
            number(verdict.value, 3),
            f"{'≤' if verdict.most else '≥'} {number(verdict.goal, 3)}",
            words[verdict.met],
        ]
        for verdict in judge(result)
    ]


def number(value: float | None, digits: int) -> str:
    """Return ``value`` with about ``digits`` digits that count, never in powers of ten."""
    if value is None:
        return ABSENT
    if value == int(value) or abs(value) >= 10**digits:
        return f"{value:.0f}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(digits - max(whole, 1), 0)}f}"


def _row(
    title: str,
    *,
    ready: float | None = None,
    lone: float | None = None,
    rate: float | None = None,
    clients: float | None = None,
    cpu_ms: float | None = None,
    raw: float | None = None,
    memory: float | None = None,
    generator: float | None = None,
) -> list[str]:
    share = rate / raw if rate is not None and raw else None
    return [
        title,
        _fixed(ready, 1),
        _fixed(lone, 1),
        _fixed(rate, 1),
        _fixed(clients, 0),
        _fixed(cpu_ms, 1),
        _fixed(share, 2),
        _fixed(memory, 0),
        _fixed(generator, 2),
    ]


def _fixed(value: float | None, decimals: int) -> str:
    return ABSENT if value is None else f"{value:.{decimals}f}"


def _middle(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
