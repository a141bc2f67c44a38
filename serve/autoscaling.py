"""Autoscaling by what is inside the replicas: each tells Ray Serve its work, and Ray's controller asks this policy.

Replicas are their own ingress, so images wait in their engines, where Ray's own policy does not look. What is decided
stands in ``models/scaling/policy.py``; here it is fed from what the replicas told, and joined to Ray.
"""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING, Any, Final, Protocol

from models.scaling.policy import Limits, Memory, Sight, decide
from models.scaling.work import Work, WorkMeter, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ray.serve.config import AutoscalingContext

    from serve.settings import Settings

POLICY: Final = "serve.autoscaling:QueuePolicy"
TELL_S: Final = 1.0
"""Time between two reports of a replica (seconds)."""
LOOK_BACK_S: Final = 10.0
"""How long Ray keeps a report (seconds); only the latest counts."""
DECIDE_S: Final = 1.0
"""Least time between two decisions (seconds): Ray asks several times a second, and nothing is new in between."""
STALE_S: Final = 10.0
"""Age of a report past which its replica counts as silent (seconds)."""
SIGNALS: Final = ("inside", "arriving", "refused", "capacity", "image_s")
"""Fields of Work, told as ``<field>:<model>``."""
START: Final = "start_s"

_log = logging.getLogger("ray.serve")


class Paced(Protocol):
    """What is asked of an engine; ``models.engine.engine.Engine`` fulfils it."""

    @property
    def inside(self) -> int:
        """Return how many images wait, are decoded or run."""
        ...

    @property
    def images_a_second(self) -> float:
        """Return how many images a second it can answer, 0 while not measured."""
        ...

    @property
    def image_s(self) -> float:
        """Return the seconds that an image takes which does not wait, 0 while not measured."""
        ...


class Workload:
    """What one replica tells of all its models."""

    def __init__(
        self, engines: Mapping[str, Paced], meters: Mapping[str, WorkMeter], clock: Callable[[], float]
    ) -> None:
        """Tell nothing yet. engines, meters: by model, the same names. clock: monotonic seconds."""
        self._engines, self._meters, self._clock = engines, meters, clock

    def tell(self) -> dict[str, float]:
        """Return the signals of every model by ``<field>:<model>``."""
        now = self._clock()
        told: dict[str, float] = {}
        for model, engine in self._engines.items():
            work = self._meters[model].read(
                now, inside=engine.inside, capacity=engine.images_a_second, image_s=engine.image_s
            )
            told.update({f"{name}:{model}": float(getattr(work, name)) for name in SIGNALS})
        return told


class QueuePolicy:
    """What Ray Serve's controller calls; one instance a deployment."""

    def __init__(self, *, objective_s: float, most_waiting: int, quiet_s: float) -> None:
        """See ``models.scaling.policy.Limits``; the bounds are Ray's."""
        self._objective_s, self._most_waiting, self._quiet_s = objective_s, most_waiting, quiet_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas to order, and the state that Ray hands back with the next call."""
        now = float(ctx.current_time or 0.0)
        ordered = ctx.target_num_replicas
        state = ctx.policy_state
        memory, decided_at = state.get("memory") or Memory(), state.get("decided_at")
        if decided_at is not None and 0.0 <= now - decided_at < DECIDE_S:
            return ordered, {"memory": memory, "decided_at": decided_at}
        limits = Limits(
            least=max(ctx.capacity_adjusted_min_replicas, 1),
            most=max(ctx.capacity_adjusted_max_replicas, 1),
            objective_s=self._objective_s,
            most_waiting=self._most_waiting,
            quiet_s=self._quiet_s,
        )
        works, starts = heard(ctx.raw_metrics or {}, now)
        sight = Sight(
            now=now,
            ready=ctx.current_num_replicas,
            ordered=ordered,
            telling=len(starts),
            start_s=statistics.median(starts) if starts else 0.0,
            demands={model: total(each) for model, each in works.items()},
        )
        wanted, memory = decide(sight, limits, memory)
        if wanted != ordered:
            _log.info("Autoscaling orders %d replicas after %d: %s", wanted, ordered, _phrase(works))
        return wanted, {"memory": memory, "decided_at": now}


def heard(series: Mapping[str, Mapping[Any, Sequence[Any]]], now: float) -> tuple[dict[str, list[Work]], list[float]]:
    """Return the latest work of every replica by model, and the seconds in which each replica started.

    series: by signal and replica, points with ``timestamp`` and ``value``, the latest last. What is older than STALE_S
    at ``now`` (seconds of the replicas' clock) is left out.
    """
    latest = {
        signal: {
            replica: float(points[-1].value)
            for replica, points in replicas.items()
            if points and points[-1].timestamp >= now - STALE_S
        }
        for signal, replicas in series.items()
    }
    works: dict[str, list[Work]] = {}
    first = SIGNALS[0]
    for signal, values in latest.items():
        name, _, model = signal.partition(":")
        if name != first or not model:
            continue
        told = [latest.get(f"{each}:{model}", {}) for each in SIGNALS]
        found = [Work(*(each.get(replica, 0.0) for each in told)) for replica in values]
        if found:
            works[model] = found
    return works, list(latest.get(START, {}).values())


def autoscaling_options(settings: Settings) -> dict[str, Any]:
    """Return Ray Serve's ``autoscaling_config`` for ``settings`` that have both bounds.

    Ray adds no delays of its own: the policy has them. ``metrics_interval_s`` is called deprecated by Ray 2.60, whose
    variable for it is not read yet.
    """
    return {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "metrics_interval_s": TELL_S,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {
            "policy_function": POLICY,
            "policy_kwargs": {
                "objective_s": settings.latency_objective_s,
                "most_waiting": settings.max_queue,
                "quiet_s": settings.scale_down_after_s,
            },
        },
    }


def _phrase(works: Mapping[str, Iterable[Work]]) -> str:
    parts = []
    for model, each in works.items():
        told = list(each)
        fleet = total(told)
        refused = sum(work.refused for work in told)
        parts.append(
            f"{model}: {fleet.arriving:.1f} images/s arrive, {refused:.1f} of them are refused, {fleet.inside:.0f} are "
            f"inside, a replica answers {fleet.capacity:.1f}"
        )
    return "; ".join(parts)
