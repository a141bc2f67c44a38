"""Choose by measuring how a release is driven, and name the shapes that will come."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from models.engine.preprocess import tensor_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from models.engine.backends.backend import Backend, Plan, Session, Shape
    from models.types import Contract, Release

ASPECT_RATIOS = ((3, 4), (4, 3), (1, 1))
"""(height, width) of the images that cameras make most, the commonest first."""
MEASURE_CALLS = 4
"""Timed calls a worker, several times over."""
MEASUREMENTS = 3
"""The best counts: whatever else runs on the machine while a service starts only makes a plan look slower."""
CLEARLY_FASTER = 1.1
"""A plan with more lanes must win by this factor: fewer lanes answer a lone request sooner."""
FAR_FASTER = 1.3
"""A plan with fewer lanes must win by this factor where lone calls take all threads anyway."""


def common_shapes(contract: Contract) -> tuple[Shape, ...]:
    """Return the distinct tensor shapes of common photographs, landscape first."""
    shapes = (tensor_shape(h * contract.imgsz, w * contract.imgsz, contract) for h, w in ASPECT_RATIOS)
    return tuple(dict.fromkeys(shapes))


def load_fastest(
    backend: Backend,
    release: Release,
    plans: Iterable[Plan],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Session:
    """Load ``release`` under each plan in turn, keep the one that answers most images a second, close the others.

    Of several about equally fast ones the one with the fewest lanes wins, but where lone calls take all threads anyway,
    the one with the most. After ``budget_s`` seconds no further plan is
    tried; the first always is. Raises what ``Backend.load`` and ``Session.infer`` raise.
    """
    begun = clock()
    plans = tuple(plans)
    best: Session | None = None
    best_rate = 0.0
    for plan in plans:
        if best is not None and clock() - begun > budget_s:
            break
        session = backend.load(release, plan)
        if len(plans) == 1:
            return session
        try:
            rate = _rate(session, common_shapes(release.contract)[0], clock)
        except BaseException:
            session.distrust()
            session.close()
            if best is not None:
                best.close()
            raise
        loser: Session | None = session
        if best is None or _better(plan, rate, best.plan, best_rate):
            loser, best, best_rate = best, session, rate
        if loser is not None:
            loser.close()
    if best is None:
        msg = "a backend offers no plan. This is a bug."
        raise ValueError(msg)
    return best


def _better(plan: Plan, rate: float, best: Plan, best_rate: float) -> bool:
    if plan.lanes < best.lanes:
        return rate > best_rate * FAR_FASTER if best.alone else rate * CLEARLY_FASTER > best_rate
    return rate > best_rate * CLEARLY_FASTER


def _rate(session: Session, shape: Shape, clock: Callable[[], float]) -> float:
    """Return images a second with every worker busy."""
    plan = session.plan
    batch = np.zeros((plan.max_batch, *shape, 3), np.uint8)

    def drive(lane: int) -> None:
        for _ in range(MEASURE_CALLS):
            session.infer(batch, lane)

    with ThreadPoolExecutor(plan.workers, thread_name_prefix="measure") as pool:
        list(pool.map(lambda lane: session.warm(shape, copy=lane), range(plan.workers)))
        list(pool.map(lambda lane: session.infer(batch, lane), range(plan.workers)))
        fastest = math.inf
        for _ in range(MEASUREMENTS):
            begun = clock()
            list(pool.map(drive, range(plan.workers)))
            fastest = min(fastest, clock() - begun)
    return plan.workers * plan.max_batch * MEASURE_CALLS / max(fastest, 1e-9)
