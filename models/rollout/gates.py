"""The gates between a fetched version and the fleet: pure verdicts with their numbers.

signature: who vouches for it. contract: what clients rely on. quality: mean average precision on labelled data, against
the serving version's. latency: the time of a golden image, likewise. Sight itself is tested by ``weights.golden``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from models.rollout.messages import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from models.rollout.order import Order
    from models.types import Contract
    from models.weights.registry import Evaluation

_SHOWN = 3
"""Class names that a reason spells out."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of a candidate. gate: ``signature``, ``contract``, ``quality`` or ``latency``.

    reason: one sentence with the numbers. waived: it passes only because the promotion's order says so.
    measured: name -> number, what was compared.
    """

    gate: str
    passed: bool
    reason: str
    waived: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)


def refusal(verdicts: Iterable[Verdict]) -> Failure | None:
    """Return the failure that the first refusing verdict means, or None where all pass; a new promote lifts it."""
    return next((Failure(each.gate, each.reason, permanent=True) for each in verdicts if not each.passed), None)


def signature_gate(finding: str) -> Verdict:
    """Tell that digests and signature let the candidate in: one that they do not is refused in the step ``verify``.

    finding: what its signature was found to be worth, as half a sentence.
    """
    return Verdict("signature", passed=True, reason=f"all files are as registered; {finding}")


def contract_gate(serving: Contract | None, candidate: Contract, order: Order) -> Verdict:
    """Compare what clients rely on: task, class names in their order, stride.

    Classes appended at the end are a breaking change, too: a client that looks names up in a table of its own meets ids
    which the table lacks. Image size and head are not: a client sees neither.

    Args:
        serving: of the version that serves; None where none does, which passes.
        candidate: of the version that was promoted.
        order: of its promotion; ``allow_contract_change`` waives the gate.
    """
    if serving is None:
        return Verdict("contract", passed=True, reason="no version serves yet")
    changes = _changes(serving, candidate)
    if not changes:
        return Verdict("contract", passed=True, reason="task, classes and stride are those of the serving version")
    told = "; ".join(changes)
    if order.allow_contract_change:
        return Verdict("contract", passed=True, reason=f"a breaking change is allowed: {told}", waived=True)
    reason = (
        f"it would break clients of the serving version: {told}; once they are ready, promote it with "
        "--allow-contract-change"
    )
    return Verdict("contract", passed=False, reason=reason)


def quality_gate(
    serving: Sequence[Evaluation],
    candidate: Sequence[Evaluation],
    order: Order,
    *,
    model: str,
    version: str,
    tolerance: float,
) -> Verdict:
    """Demand that the candidate's mAP50-95 is not worse than the serving version's on the same data.

    It must have been evaluated on the data that the serving version was evaluated on last, the model's evaluation set,
    and not be worse on any data that both were evaluated on: evaluating the serving version on easier data hides
    nothing.

    Args:
        serving: evaluations of the version that serves, oldest first; empty where none serves or none was made.
        candidate: those of the version that was promoted.
        order: of its promotion; ``force`` waives the gate.
        model: for the command that a refusal names.
        version: the candidate's, likewise.
        tolerance: mAP50-95 that may be lost, 0 to 1: 0.003 is 0.3 points.
    """
    if not serving and not candidate:
        return Verdict("quality", passed=True, reason="not evaluated: neither this version nor the serving one")
    if not serving:
        last = candidate[-1]
        reason = f"the serving version is not evaluated; this one has mAP50-95 {last.map50_95:.4f} on {last.data_name}"
        return Verdict("quality", passed=True, reason=reason, measured={"candidate": last.map50_95})
    own = {each.data: each for each in candidate}
    wanted = serving[-1]
    if wanted.data not in own:
        reason = (
            f"it is not evaluated on {wanted.data_name} (data {wanted.data[:12]}), where the serving version has "
            f"mAP50-95 {wanted.map50_95:.4f}; run `steelyard evaluate {model} {version} --data {wanted.data_name}` on "
            "that data and promote it again"
        )
        return _unless_forced("quality", reason, order, {"serving": wanted.map50_95})
    pairs = [(own[each.data], each) for each in serving if each.data in own]
    ours, theirs = min(pairs, key=lambda pair: pair[0].map50_95 - pair[1].map50_95)
    measured = {"candidate": ours.map50_95, "serving": theirs.map50_95, "tolerance": tolerance}
    told = (
        f"mAP50-95 {ours.map50_95:.4f} against {theirs.map50_95:.4f} of the serving version on {theirs.data_name} "
        f"(data {theirs.data[:12]}, {theirs.images} images)"
    )
    if ours.map50_95 >= theirs.map50_95 - tolerance - _ROUNDING:
        return Verdict("quality", passed=True, reason=told, measured=measured)
    reason = f"it sees worse: {told}, and at most {tolerance:g} may be lost"
    return _unless_forced("quality", reason, order, measured)


def latency_gate(serving_ms: float | None, candidate_ms: float | None, order: Order, *, factor: float) -> Verdict:
    """Demand that the candidate takes at most ``factor`` times as long as the serving version.

    Args:
        serving_ms: least time of a golden image in the version that serves (milliseconds); None where none was
            measured, which passes and is told.
        candidate_ms: the same of the candidate, on the same images in the same process.
        order: of the promotion; ``force`` waives the gate.
        factor: >= 1.
    """
    if serving_ms is None or candidate_ms is None:
        return Verdict("latency", passed=True, reason="not measured: no replica timed both versions on a golden image")
    measured = {"candidate_ms": candidate_ms, "serving_ms": serving_ms, "factor": factor}
    told = f"{candidate_ms:.1f} ms a golden image against {serving_ms:.1f} ms of the serving version"
    if candidate_ms <= serving_ms * factor:
        return Verdict("latency", passed=True, reason=told, measured=measured)
    return _unless_forced("latency", f"it is too slow: {told}, at most {factor:g} times as long", order, measured)


def _unless_forced(gate: str, reason: str, order: Order, measured: Mapping[str, float]) -> Verdict:
    if order.force:
        told = f"waived ({order.force}): {reason}"
        return Verdict(gate, passed=True, reason=told, waived=True, measured=measured)
    told = f"{reason}; to serve it all the same, promote it with --force --reason"
    return Verdict(gate, passed=False, reason=told, measured=measured)


def _changes(serving: Contract, candidate: Contract) -> list[str]:
    changes = []
    if candidate.task != serving.task:
        changes.append(f"its task is {candidate.task} instead of {serving.task}")
    if candidate.names != serving.names:
        changes.append(_changed_names(serving.names, candidate.names))
    if candidate.stride != serving.stride:
        changes.append(f"its stride is {candidate.stride} pixels instead of {serving.stride}")
    return changes


def _changed_names(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    if new[: len(old)] == old:
        return f"it appends {_listed(new[len(old) :])} to {len(old)} classes"
    if old[: len(new)] == new:
        return f"it lacks the last {_listed(old[len(new) :])} of {len(old)} classes"
    if sorted(old) == sorted(new):
        first = next(index for index, name in enumerate(old) if new[index] != name)
        return f"its {len(old)} classes are in another order: {first} is {new[first]!r} instead of {old[first]!r}"
    first = next(index for index, (was, now) in enumerate(zip(old, new, strict=False)) if was != now)
    moved = f"class {first} is {new[first]!r} instead of {old[first]!r}"
    return f"its classes differ: {moved}, {len(new)} classes instead of {len(old)}"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
