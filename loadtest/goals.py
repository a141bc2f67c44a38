"""What the service must reach, as ratios within one run, and whether it did. Pure: numbers in, verdicts out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

OWN = "steelyard"
FEWEST_POISSON = 2000
"""Requests that the run at a steady rate must hold to say something of a p99."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal. value: None where it was not measured. most: whether ``goal`` is the most allowed, else the least."""

    name: str
    value: float | None
    goal: float
    most: bool

    @property
    def met(self) -> bool | None:
        """Return whether the goal is met, None where nothing was measured."""
        if self.value is None:
            return None
        return self.value <= self.goal if self.most else self.value >= self.goal


def at_least(name: str, value: float | None, goal: float) -> Verdict:
    """Return a goal that wants ``value`` >= ``goal``."""
    return Verdict(name, value, goal, most=False)


def at_most(name: str, value: float | None, goal: float) -> Verdict:
    """Return a goal that wants ``value`` <= ``goal``."""
    return Verdict(name, value, goal, most=True)


def judge(result: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdicts on a result of ``bench.py``, in the order of the goals' list."""
    rounds = result["rounds"]
    steady, flooded, budget = result.get("steady"), result.get("flooded"), result.get("memory_budget_mb", 1500)
    return [
        at_least("peak ÷ raw engine", paired(rounds, _peak, _raw), 0.80),
        at_least("peak ÷ in one process", paired(rounds, _peak, lambda each: _of(each, "in_process", "rate")), 0.90),
        at_least("peak ÷ FastAPI + Ultralytics OpenVINO", paired(rounds, _peak, _peer_peak("fastapi")), 2.2),
        at_least("peak ÷ PyTriton", paired(rounds, _peak, _peer_peak("pytriton")), 1.8),
        at_most("lone p50 ÷ FastAPI + Ultralytics OpenVINO", paired(rounds, _lone(OWN), _lone("fastapi")), 0.75),
        at_most(
            "p99 at 60 % of peak ÷ lone p50", _ratio(_of(steady, "load", "p99_ms"), _of(steady, "lone_p50_ms")), 4.0
        ),
        at_most("requests at 60 % of peak not answered", _unanswered(steady), 0),
        at_least("requests at 60 % of peak", _of(steady, "load", "sent"), FEWEST_POISSON),
        at_least("goodput at 130 % ÷ peak", _ratio(_of(flooded, "load", "rate"), _of(flooded, "peak")), 0.95),
        at_most("refusal at 130 %, p99 ms", _of(flooded, "load", "refusal_p99_ms"), 50.0),
        at_most("refusals without Retry-After", _of(flooded, "load", "without_retry_after"), 0),
        at_most("failures at 130 % other than 429", _of(flooded, "load", "failed"), 0),
        at_most(
            "p99 at 130 % of what was accepted, ms", _of(flooded, "load", "p99_ms"), result.get("deadline_ms", 3e4)
        ),
        at_most("CPU an image ÷ raw engine", paired(rounds, lambda each: _server(each, OWN, "cpu_ms"), _raw_cpu), 1.35),
        at_most("idle, % of one core", _of(result.get("idle"), "percent"), 15.0),
        at_most("ready, s", _median([_server(each, OWN, "ready_s") for each in rounds]), 15.0),
        at_most("replica's memory, MiB", _of(result.get("memory"), "replica_mib"), budget),
    ]


def paired(
    rounds: Sequence[Mapping[str, Any]],
    upper: Callable[[Mapping[str, Any]], float | None],
    lower: Callable[[Mapping[str, Any]], float | None],
) -> float | None:
    """Return the median over the rounds of ``upper`` / ``lower``, each ratio taken within its round."""
    return _median([_ratio(upper(each), lower(each)) for each in rounds])


def _peak(each: Mapping[str, Any]) -> float | None:
    return _server(each, OWN, "peak", "rate")


def _peer_peak(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda each: _server(each, name, "peak", "rate")


def _lone(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda each: _server(each, name, "lone", "p50_ms")


def _raw(each: Mapping[str, Any]) -> float | None:
    return _median([_of(each, when, "rate") for when in ("raw_before", "raw_after")])


def _raw_cpu(each: Mapping[str, Any]) -> float | None:
    return _median([_of(each, when, "cpu_ms") for when in ("raw_before", "raw_after")])


def _server(each: Mapping[str, Any], *keys: str) -> float | None:
    return _of(each, "servers", *keys)


def _unanswered(steady: Mapping[str, Any] | None) -> float | None:
    refused, failed = _of(steady, "load", "refused"), _of(steady, "load", "failed")
    return None if refused is None or failed is None else refused + failed


def _of(found: Any, *keys: str) -> float | None:
    for key in keys:
        if not isinstance(found, dict) or found.get(key) is None:
            return None
        found = found[key]
    return float(found)


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None
