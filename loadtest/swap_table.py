"""The tables of ``swap.py`` in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swap_figures import EDGES_MS, LEAST_SAMPLES, promises, sound
from table import ABSENT, table

if TYPE_CHECKING:
    from collections.abc import Mapping

WORDS = {True: "kept", False: "**broken**", None: "cannot be told"}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the report: machine, promises, latencies, histograms, and what a reader must know beside them."""
    machine, found = result["machine"], result["figures"]
    parts = [
        f"## {machine['date']}, commit {machine['commit']}",
        f"{machine['cpu']}, {machine['cores']} cores shared with the load generator. {result['what']}",
        table(("promise", "measured", "wanted", ""), [[*row] for row in _promises(found)]),
        table(("", "swap windows", "control windows"), _windows(found)),
        table(("ms", *_edges()), _histograms(found)),
        table(("ms", "median", "p99", "longest"), _durations(found)),
    ]
    return "\n\n".join([*parts, *(f"- {note}" for note in notes(result))]) + "\n"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know beside the figures."""
    found, said = result["figures"], []
    if not sound(found):
        said.append(
            f"the generator was the limit (p99 {found['late_p99_ms']:.1f} ms behind its clock): the latencies say "
            "nothing"
        )
    if min(found["requests"]) < LEAST_SAMPLES:
        said.append(f"fewer than {LEAST_SAMPLES} requests in the windows: no p99 can be claimed")
    if found["aborted_holds"]:
        said.append(f"{found['aborted_holds']} holds ended without a flip: an attempt was given up and tried again")
    for piece in result["pieces"]:
        said += [f"failed: {kind} x {count}" for kind, count in piece["failures"].items()]
        said += [f"wrong: {what} x {count}" for what, count in piece["wrong_examples"].items()]
    return [*said, *result.get("notes", [])]


def _promises(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    return [(each.promise, each.measured, each.wanted, WORDS[each.met]) for each in promises(found)]


def _windows(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["requests", *map(str, found["requests"])]]
    for title, name in (
        ("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"), ("p99.9 ms", "p999_ms"),
        ("longest gap between answers, ms", "gap_ms"),
    ):  # fmt: skip
        rows.append([title, *map(_ms, found[name])])
    spread = [ABSENT if each is None else " / ".join(map(_ms, each)) for each in found["quartiles_ms"]]
    pooled = [ABSENT if each is None else " to ".join(map(_ms, each)) for each in found["p99_95_ms"]]
    wide = ABSENT if found["ratio_asked"] is None else f"{found['ratio_asked']:.2f}"
    return [
        *rows,
        ["p99, 95 % interval, ms", *pooled],
        ["p99 of single windows, quartiles, ms", *spread],
        ["p99 ÷ control's, were windows to begin with the request for the swap", wide, "1"],
    ]


def _edges() -> list[str]:
    return [*(f"≤ {edge:g}" for edge in EDGES_MS), f"> {EDGES_MS[-1]:g}"]


def _histograms(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [title, *(str(count) if count else "" for count in found[name])]
        for title, name in (("holds", "holds_histogram"), ("skew of flips", "skew_histogram"))
    ]


def _durations(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [title, *(ABSENT,) * 3] if found[name] is None else [title, *map(_ms, found[name])]
        for title, name in (
            ("hold of a replica", "holds_ms"),
            ("skew, first to last replica's flip", "skew_ms"),
            ("promotion, request to last flip", "promotion_ms"),
            ("rollback, request to last flip", "rollback_ms"),
            ("promotion, request to first answer, beyond load and warm-up", "promotion_beyond_ms"),
            ("alias moved in MLflow, webhook: to first answer, beyond load and warm-up", "hint_beyond_ms"),
        )
    ]


def _ms(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"
