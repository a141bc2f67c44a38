"""Brings together what the gates compare: both versions' contracts and evaluations. Decides nothing itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from models.errors import RegistryError, UnknownModelError, UnknownVersionError
from models.rollout.gates import Verdict, contract_gate, quality_gate, signature_gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.messages import Target
    from models.rollout.order import Order
    from models.weights.registry import Evaluation, Registry
    from serve.depot import Depot

REGISTRY_DEADLINE_S: Final = 15.0


async def judge(
    model: str,
    serving: Target | None,
    target: Target,
    order: Order,
    *,
    depot: Depot,
    registry: Registry,
    in_registry_thread: Callable[..., Awaitable[Any]],
    tolerance: float,
) -> tuple[Verdict, ...]:
    """Return the verdicts of the signature, contract and quality gates; call it once the target is fetched.

    What the signature gate refuses is refused before that, so it only tells why the version was let in.

    A rollback is no promotion: do not judge what it returns to.

    Args:
        model: whose rollout it is.
        serving: what serves now; where nothing does, or the same release, all gates pass.
        target: what was promoted.
        order: of that promotion.
        depot: holds both releases, or fetches them.
        registry: holds their evaluations.
        in_registry_thread: runs a blocking call of the registry.
        tolerance: mAP50-95 that may be lost, 0 to 1.

    Raises:
        ReleaseError: a release cannot be had.
        RegistryError: the registry does not answer; nothing is decided, try again later.
    """
    found = depot.finding(model, target.version, target.digest)
    signature = signature_gate("not looked at" if found is None else found.told)
    if serving is None or serving.digest == target.digest:
        reason = "no version serves yet" if serving is None else "it is the release that serves"
        return (signature, *(Verdict(gate, passed=True, reason=reason) for gate in ("contract", "quality")))
    theirs = await depot.contract(model, serving.version, serving.digest)
    ours = await depot.contract(model, target.version, target.digest)
    verdict = contract_gate(theirs, ours, order)
    if not verdict.passed:
        return (signature, verdict)
    try:
        async with asyncio.timeout(REGISTRY_DEADLINE_S):
            before = await in_registry_thread(_evaluations, registry, model, serving)
            after = await in_registry_thread(_evaluations, registry, model, target)
    except TimeoutError as error:
        msg = "the registry did not answer in time when asked for evaluations; it is tried again later"
        raise RegistryError(msg) from error
    quality = quality_gate(before, after, order, model=model, version=target.version, tolerance=tolerance)
    return (signature, verdict, quality)


def _evaluations(registry: Registry, model: str, target: Target) -> tuple[Evaluation, ...]:
    """Return the evaluations of the very release, oldest first; a version that was deleted has none."""
    try:
        found = registry.evaluations(model, target.version)
    except (UnknownModelError, UnknownVersionError):
        return ()
    return tuple(each for each in found if each.release == target.digest)
