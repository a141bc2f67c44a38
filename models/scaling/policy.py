"""How many replicas a fleet needs, from the work inside it and the images that arrive. Pure; time is given.

Work is counted in images and divided by the images a second that one replica was measured to answer, so the unit of
every need is one replica. Two needs are compared, and the larger counts:

- steady: what keeps the predicted wait of 99 of 100 images within the objective. Behind a balancer that evens the
  replicas out, an image waits longer than t with a chance of about min(1, r / c) * exp(-2 (n c - r) t), where r images
  arrive a second and n replicas answer c each (Kingman's heavy-traffic limit, Poisson arrivals, fixed service times).
  So what must be left over is a number of images a second, whatever the size of the fleet. On top comes a tenth of
  the load, by which it may grow while new replicas start.
- catching up: what answers the arrivals and, within the time in which a replica starts, the images that will wait
  beyond the objective once it has started. More replicas than that would start only to find the backlog gone.

More are ordered at once. Fewer are ordered when the need, at a tenth more load, was lower for ``quiet_s`` on end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LATE_SHARE: Final = 0.01
"""Share of images that may wait longer than the objective allows."""
GROWTH: Final = 0.1
"""By so much of itself the load may grow while replicas start."""
CALM: Final = 0.1
"""By so much of itself the load must be lower before replicas are given back, or noise would order and return them."""
LEAST_START_S: Final = 5.0
"""Start of a replica (seconds) that is assumed where none was measured, and at least."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator sets.

    least, most: replicas, 1 <= least <= most. objective_s: seconds within which an image is to be answered, > 0.
    most_waiting: images that may wait in one replica, past which it refuses, >= 1. quiet_s: seconds for which fewer
    replicas must have been enough, >= 0.
    """

    least: int
    most: int
    objective_s: float
    most_waiting: int
    quiet_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model asks of the whole fleet.

    inside: images in replicas, waiting or running. arriving: images a second, those refused for lack of room included.
    capacity: images a second that one replica can answer; 0 where none has been measured. image_s: seconds that an
    image which does not wait takes.
    """

    inside: float
    arriving: float
    capacity: float
    image_s: float


@dataclass(frozen=True, slots=True)
class Sight:
    """What a decision rests on.

    now: seconds on any clock. ready: replicas that serve. ordered: replicas asked for last. telling: replicas whose
    report is fresh. start_s: seconds in which a replica starts; 0 where not known. demands: by model.
    """

    now: float
    ready: int
    ordered: int
    telling: int
    start_s: float
    demands: Mapping[str, Demand]


@dataclass(frozen=True, slots=True)
class Memory:
    """What is carried from one decision to the next.

    peaks: (time, replicas) of past needs, the times rising and the replicas falling: each is the most since its time.
    raised_at: when more replicas were ordered last. capacities: images a second, the last known, by model.
    """

    peaks: tuple[tuple[float, int], ...] = ()
    raised_at: float = -math.inf
    capacities: tuple[tuple[str, float], ...] = ()


def decide(sight: Sight, limits: Limits, memory: Memory) -> tuple[int, Memory]:
    """Return how many replicas there should be, ``least`` to ``most``, and what to remember.

    Never fewer than the arriving images need, unless ``most`` is fewer. The order in force stays where most replicas
    are silent, or none has measured what it can do.
    """
    ordered = _within(sight.ordered, limits)
    known = dict(memory.capacities) | {name: each.capacity for name, each in sight.demands.items() if each.capacity > 0}
    demands = {name: each for name, each in sight.demands.items() if known.get(name, 0.0) > 0}
    memory = Memory(memory.peaks, memory.raised_at, tuple(sorted(known.items())))
    if not demands or 2 * sight.telling < sight.ready:
        return ordered, memory
    start_s = max(sight.start_s, LEAST_START_S)
    under_way = sight.ordered > sight.ready
    starts_in = max(start_s - (sight.now - memory.raised_at), 0.0) if under_way else start_s
    needs = [
        (
            need(each, known[name], sight.ready, limits, start_s=start_s, starts_in=starts_in),
            need(each, known[name], sight.ready, limits, start_s=start_s, starts_in=starts_in, more=CALM),
        )
        for name, each in demands.items()
    ]
    # Each model has its own share of a replica's threads, so the one that needs most decides.
    now_needed = _within(math.ceil(max(each for each, _ in needs)), limits)
    calm_needed = _within(math.ceil(max(each for _, each in needs)), limits)
    peaks = _remembered(memory.peaks or ((sight.now, ordered),), sight.now, calm_needed, limits.quiet_s)
    wanted = max(now_needed, min(ordered, peaks[0][1]))
    raised_at = sight.now if wanted > sight.ordered else memory.raised_at
    return wanted, Memory(peaks, raised_at, memory.capacities)


def need(
    demand: Demand,
    capacity: float,
    ready: int,
    limits: Limits,
    *,
    start_s: float,
    starts_in: float,
    more: float = 0.0,
) -> float:
    """Return the replicas that one model needs, a fraction, >= 0.

    Args:
        demand: of the model.
        capacity: images a second of one replica, > 0.
        ready: replicas that serve.
        limits: the objective and the room for waiting images.
        start_s: seconds in which a replica starts, > 0.
        starts_in: seconds until the replicas on their way, or those ordered now, are ready.
        more: share of the load by which it is taken for larger.

    """
    arriving = demand.arriving * (1.0 + more)
    # An objective below the time of the image itself cannot be met by waiting less than one image's time.
    patience_s = max(limits.objective_s - demand.image_s, demand.image_s, 1e-3)
    waits = min(1.0, arriving / capacity)
    spare = max(0.0, math.log(waits / LATE_SHARE)) / (2.0 * patience_s) if waits > 0.0 else 0.0
    steady = arriving * (1.0 + GROWTH) + spare

    answered = ready * capacity
    grown = demand.inside + (arriving - answered) * starts_in
    # What does not find room is refused, and waits nowhere.
    expected = min(max(grown, 0.0), max(float(ready * limits.most_waiting), demand.inside))
    excess = max(0.0, expected - answered * patience_s)
    catching_up = arriving + excess / max(start_s, limits.objective_s)
    return max(steady, catching_up) / capacity


def _remembered(
    peaks: tuple[tuple[float, int], ...], now: float, needed: int, quiet_s: float
) -> tuple[tuple[float, int], ...]:
    """Return the peaks of the last ``quiet_s`` with ``needed`` now: a falling sequence, of which the first is the most.

    A time is kept to the second, so that there are no more entries than seconds.
    """
    kept = [(when, most) for when, most in peaks if when >= now - quiet_s and most > needed]
    if kept and math.floor(kept[-1][0]) == math.floor(now):
        return tuple(kept)
    return (*kept, (now, needed))


def _within(replicas: int, limits: Limits) -> int:
    return min(max(replicas, limits.least), limits.most)
