"""The policies that run a simulated fleet: Steelyard's own function, and Ray Serve's default one, called as Ray does.

Both get what they would get in a service: ours a report a second old and the rate of the last four seconds, Ray's the
mean over its look-back of the requests that hold a slot, told every ten seconds.
"""

from __future__ import annotations

import math
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol
from unittest import mock

from models.scaling.policy import Demand, Limits, Memory, Sight, decide
from models.scaling.work import RATE_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from day_fleet import Fleet, Machine, Second

RECORD_S: Final = 6.0
"""Ray's replicas note their requests every fifth part of the look-back (seconds)."""
MODEL: Final = "checkout"


class Policy(Protocol):
    """Decides once a simulated second."""

    def decide(self, now: float, second: Second, fleet: Fleet) -> int:
        """Return the replicas to order at ``now`` (seconds), after ``second``."""
        ...


class Fixed:
    """A fleet that never changes."""

    def __init__(self, replicas: int) -> None:
        """Keep so many."""
        self._replicas = replicas

    def decide(self, now: float, second: Second, fleet: Fleet) -> int:  # noqa: ARG002 - the protocol's
        """Return the same number always."""
        return self._replicas


class Steelyard:
    """``models.scaling.policy.decide``, as ``serve/autoscaling.py`` calls it."""

    def __init__(self, limits: Limits, machine: Machine) -> None:
        """Remember nothing yet."""
        self._limits, self._machine, self._memory = limits, machine, Memory()
        self._told: deque[Second] = deque(maxlen=round(RATE_S) + 1)

    def decide(self, now: float, second: Second, fleet: Fleet) -> int:
        """Decide on what the replicas told a second ago."""
        self._told.append(second)
        if len(self._told) == 1:
            return fleet.ordered
        told = list(self._told)[:-1]
        # Images that run are inside as well.
        inside = told[-1].inside + told[-1].answered * self._machine.image_s
        arriving = sum(each.arrived for each in told) / len(told)
        demand = Demand(inside, arriving, self._machine.rate, self._machine.image_s)
        ready = len(fleet.waiting)
        sight = Sight(now, ready, fleet.ordered, ready, self._machine.start_s, {MODEL: demand})
        wanted, self._memory = decide(sight, self._limits, self._memory)
        return wanted


class RayDefault:
    """The policy of the installed Ray Serve, in the wrapper that gives it its delays and bounds."""

    def __init__(self, options: Mapping[str, Any], *, least: int, most: int) -> None:
        """Import Ray Serve. options: further fields of AutoscalingConfig; none for its defaults."""
        from ray.serve import autoscaling_policy  # noqa: PLC0415 - takes a second
        from ray.serve.config import AutoscalingConfig  # noqa: PLC0415 - likewise

        self._module = autoscaling_policy
        self._config = AutoscalingConfig(min_replicas=least, max_replicas=most, **options)
        self._policy = autoscaling_policy._apply_autoscaling_config(  # noqa: SLF001 - as Ray's controller does
            autoscaling_policy.default_autoscaling_policy
        )
        self._state: dict[str, Any] = {}
        self._noted: deque[tuple[float, float]] = deque()
        self._told: tuple[tuple[float, float], ...] = ()
        self._note_at, self._tell_at = 0.0, 0.0

    def decide(self, now: float, second: Second, fleet: Fleet) -> int:
        """Ask Ray's function, at a time of its own that stands at ``now``."""
        from ray.serve.config import AutoscalingContext  # noqa: PLC0415 - imported already

        if now >= self._note_at:
            self._note_at = now + RECORD_S
            self._noted.append((now, second.seen))
        if now >= self._tell_at:
            self._tell_at = now + self._config.metrics_interval_s
            while self._noted and self._noted[0][0] < now - self._config.look_back_period_s:
                self._noted.popleft()
            self._told = tuple(self._noted)
        context = AutoscalingContext(
            deployment_id=None,
            deployment_name=MODEL,
            app_name=None,
            current_num_replicas=len(fleet.waiting),
            target_num_replicas=fleet.ordered,
            running_replicas=[],
            total_num_requests=mean_over_time(self._told, now),
            total_queued_requests=0.0,
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self._config,
        )
        with mock.patch.object(self._module, "time", SimpleNamespace(time=lambda: now)):
            wanted, self._state = self._policy(context)
        return int(min(max(math.ceil(wanted), self._config.min_replicas), self._config.max_replicas))


def mean_over_time(points: tuple[tuple[float, float], ...], now: float) -> float:
    """Return the mean of a step function given by (time, value) ``points``, the last value holding until ``now``."""
    if not points:
        return 0.0
    ends = [when for when, _ in points[1:]] + [max(now, points[-1][0] + 1e-3)]
    weights = [end - when for (when, _), end in zip(points, ends, strict=True)]
    return sum(weight * value for weight, (_, value) in zip(weights, points, strict=True)) / sum(weights)
