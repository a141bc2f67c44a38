"""What a trial and a probation have shown so far, and whether the registry answers, in lines of text."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from serve.client import Rollout

PERCENT = 100.0


def progress_lines(state: "Rollout") -> list[str]:
    """Return a line each for the gates' verdicts, trial step, probation and a silent registry, if there are any."""
    lines = []
    for verdict in state.get("verdicts", []):
        word = "waived" if verdict["waived"] else "passed" if verdict["passed"] else "refused"
        lines.append(f"{verdict['gate']} {word}: {verdict['reason']}")
    trial = state.get("trial")
    if trial is not None:
        share = f"{PERCENT * trial['fraction']:g} % of {'images' if trial['mode'] == 'shadow' else 'clients'}"
        step = f"step {trial['number']} of {trial['of']}, {trial['mode']}: {share}, {trial['left_s']:.0f} s left"
        lines.append(f"{step}; {_figures(trial['evidence'])}")
    probation = state.get("probation")
    if probation is not None:
        lines.append(f"probation: {probation['left_s']:.0f} s left; {_figures(probation['evidence'])}")
    registry = state.get("registry")
    if registry is not None and registry["reachable"] is False:
        since = "never read" if registry["age_s"] is None else f"last read {registry['age_s']:.0f} s ago"
        lines.append(f"registry out of reach, {since}: {registry['reason']}")
    return lines


def without_time(state: "Rollout") -> dict[str, Any]:
    """Return the state without what changes by itself, so that only news is shown: seconds, evidence, counts."""
    trial, probation, registry = state.get("trial"), state.get("probation"), state.get("registry")
    return {
        **state,
        "trial": trial and trial["number"],
        "probation": probation is not None,
        "registry": registry and (registry["reachable"], registry["reason"], registry["from_cache"]),
    }


def _figures(evidence: "Mapping[str, float]") -> str:
    """Return images, failures and the 99th percentile of both versions."""
    parts = []
    for name, called in (("candidate", "new"), ("serving", "old")):
        images, errors, p99 = (evidence.get(f"{name}_{figure}", 0.0) for figure in ("images", "errors", "p99_ms"))
        parts.append(f"{called} {images:.0f} images, {errors:.0f} failed, p99 {p99:.1f} ms")
    if evidence.get("compared"):
        found = PERCENT * evidence.get("found_again", 0.0)
        parts.append(f"{evidence['compared']:.0f} compared, {found:.1f} % of boxes found again")
    return "; ".join(parts)
