"""Make a release fast before it serves: choose the plan by measuring, warm the shapes that will come."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from models.engine.preprocess import tensor_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from models.engine.backends.backend import Backend, Plan, Session, Shape
    from models.types import Contract, Release

ASPECT_RATIOS = ((1, 1), (3, 4), (4, 3))
"""(height, width) of the images that cameras make most."""
MEASURE_CALLS = 4
"""Timed calls a lane and plan."""
CLEARLY_FASTER = 1.1
"""A plan with more lanes must win by this factor: fewer lanes answer a lone request sooner."""
COMPILE_AFTER = 16
"""Images of a shape before it is warmed: a rare shape would never earn back what warming it costs."""


def common_shapes(contract: Contract) -> tuple[Shape, ...]:
    """Return the distinct tensor shapes of common photographs, the square first."""
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

    Of several about equally fast ones the one with the fewest lanes wins. After ``budget_s`` seconds no further plan is
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
            rate = _rate(session, common_shapes(release.contract)[-1], clock)
        except BaseException:
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
        return rate * CLEARLY_FASTER > best_rate
    return rate > best_rate * CLEARLY_FASTER


def _rate(session: Session, shape: Shape, clock: Callable[[], float]) -> float:
    """Return images a second with every lane busy."""
    plan = session.plan
    batch = np.zeros((plan.max_batch, *shape, 3), np.uint8)
    session.warm(shape)

    def drive(lane: int) -> None:
        for _ in range(MEASURE_CALLS):
            session.infer(batch, lane)

    with ThreadPoolExecutor(plan.lanes, thread_name_prefix="measure") as pool:
        list(pool.map(lambda lane: session.infer(batch, lane), range(plan.lanes)))
        begun = clock()
        list(pool.map(drive, range(plan.lanes)))
    return plan.lanes * plan.max_batch * MEASURE_CALLS / max(clock() - begun, 1e-9)


@dataclass(slots=True, eq=False)
class ShapeCache:
    """The warm shapes of all loaded releases, the least recently used forgotten when memory runs out.

    budget: bytes that warm shapes may take together, as ``Session.shape_cost`` estimates them. Safe from any thread;
    ``warm`` blocks and belongs on a worker thread.
    """

    budget: int
    _warm: OrderedDict[tuple[Session, Shape], int] = field(default_factory=OrderedDict)
    _seen: Counter[tuple[Session, Shape]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, session: Session, shape: Shape, images: int) -> bool:
        """Count ``images`` of ``shape``; return whether the shape has just earned to be warmed."""
        key = (session, shape)
        with self._lock:
            if key in self._warm:
                self._warm.move_to_end(key)
                return False
            before = self._seen[key]
            self._seen[key] = before + images
            return before < COMPILE_AFTER <= before + images

    def warm(self, session: Session, shape: Shape) -> None:
        """Warm ``shape`` unless it is warm or would take the whole budget. Raises BackendError."""
        key, cost = (session, shape), session.shape_cost(shape)
        evicted = []
        with self._lock:
            if key in self._warm or cost > self.budget:
                return
            while self._warm and sum(self._warm.values()) + cost > self.budget:
                oldest, _ = self._warm.popitem(last=False)
                self._seen.pop(oldest, None)
                evicted.append(oldest)
            self._warm[key] = cost
        for other, forgotten in evicted:
            other.forget(forgotten)
        try:
            session.warm(shape)
        except BaseException:
            with self._lock:
                self._warm.pop(key, None)
            raise

    def shapes(self, session: Session) -> tuple[Shape, ...]:
        """Return the warm shapes of ``session``, the most recently used first."""
        with self._lock:
            return tuple(shape for owner, shape in reversed(self._warm) if owner is session)

    def drop(self, session: Session) -> None:
        """Forget all about ``session``, which is about to be closed."""
        with self._lock:
            for key in [key for key in self._warm if key[0] is session]:
                del self._warm[key]
            for key in [key for key in self._seen if key[0] is session]:
                del self._seen[key]
