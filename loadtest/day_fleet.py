"""A fleet of replicas as queues, in steps of a second: replicas start late, drain before they go, and refuse when full.

A fluid model: within a second images arrive and are answered evenly. HAProxy sends an image where the fewest are, so
arrivals fill the emptiest replicas first, and what waits in a replica stays there. Waits that come and go within a
second are left out, for every policy alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica.

    rate: images a second. image_s: seconds an image takes which does not wait. room: images that may wait; more are
    refused. start_s: seconds from the order to the first answer, > 0. drain_s: least seconds from leaving the balancer
    to the end. slots: images in one replica that Ray counts at most.
    """

    rate: float = 20.0
    image_s: float = 0.05
    room: float = 256.0
    start_s: float = 30.0
    drain_s: float = 2.0
    slots: float = 5.0


@dataclass(frozen=True, slots=True)
class Second:
    """What one second brought, in images: arrived = answered + shed + change of what is inside.

    late: those taken in this second that are answered later than the objective. seen: what Ray counts at its end.
    ready, paid: replicas that take images, and those that cost money: starting, ready or draining.
    """

    arrived: float
    answered: float
    shed: float
    late: float
    inside: float
    seen: float
    ready: int
    paid: int


@dataclass(slots=True)
class Fleet:
    """The replicas of one day. ``waiting`` (ready,): images in each that takes images."""

    machine: Machine
    objective_s: float
    waiting: Floats
    now: float = 0.0
    starting: list[tuple[float, int]] = field(default_factory=list)
    """(second in which they are ready, replicas), the earliest first."""
    draining: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    """(replicas, 2): images left, second in which each left the balancer."""

    @classmethod
    def of(cls, replicas: int, machine: Machine, objective_s: float) -> Fleet:
        """Return a fleet of idle replicas, all ready."""
        return cls(machine, objective_s, np.zeros(replicas))

    @property
    def ordered(self) -> int:
        """Return the replicas that take images or will."""
        return len(self.waiting) + sum(count for _, count in self.starting)

    @property
    def inside(self) -> float:
        """Return the images that wait."""
        return float(self.waiting.sum() + self.draining[:, 0].sum())

    def order(self, replicas: int) -> None:
        """Bring the fleet to ``replicas`` >= 0: start more, or give up first what only starts, then the idlest."""
        more = replicas - self.ordered
        if more > 0:
            self.starting.append((self.now + self.machine.start_s, more))
        while more < 0 and self.starting:
            at, count = self.starting.pop()
            if count > -more:
                self.starting.append((at, count + more))
            more = min(more + count, 0)
        if more < 0:
            by_load = np.argsort(self.waiting, kind="stable")
            gone = np.stack((self.waiting[by_load[:-more]], np.full(-more, self.now)), axis=1)
            self.draining = np.concatenate((self.draining, gone))
            self.waiting = self.waiting[by_load[-more:]]

    def step(self, arriving: float) -> Second:
        """Let one second pass in which ``arriving`` >= 0 images come."""
        self.now += 1.0
        while self.starting and self.starting[0][0] <= self.now:
            self.waiting = np.concatenate((self.waiting, np.zeros(self.starting.pop(0)[1])))
        paid = self.ordered + len(self.draining)
        answered = self._drain()
        ready, image_s, rate = len(self.waiting), self.machine.image_s, self.machine.rate
        if arriving <= ready * rate and not self.waiting.any():
            # Nobody waits, and every replica keeps up with its share.
            shed, late, seen = 0.0, 0.0, min(arriving * image_s, ready * self.machine.slots)
            answered += arriving
        else:
            before = self.waiting
            taken = poured(before, arriving, self.machine.room + rate)
            served = np.minimum(before + taken, rate)
            self.waiting = before + taken - served
            answered += float(served.sum())
            shed = max(arriving - float(taken.sum()), 0.0)
            late = float((taken * self._late_share(before, self.waiting)).sum())
            seen = float(np.minimum(self.waiting + served * image_s, self.machine.slots).sum())
        return Second(arriving, answered, shed, late, self.inside, seen, ready, paid)

    def _drain(self) -> float:
        """Let what has left the balancer answer for a second; return the images."""
        if not len(self.draining):
            return 0.0
        served = np.minimum(self.draining[:, 0], self.machine.rate)
        self.draining[:, 0] -= served
        left_at = self.draining[:, 1]
        self.draining = self.draining[(self.draining[:, 0] > 0.0) | (self.now - left_at < self.machine.drain_s)]
        return float(served.sum())

    def _late_share(self, before: Floats, after: Floats) -> Floats:
        """Return the share of a second's arrivals (replicas,) that find more before them than the objective allows.

        What an image finds runs evenly from ``before`` to ``after`` within the second.
        """
        line = max(self.objective_s - self.machine.image_s, 0.0) * self.machine.rate
        low, high = np.minimum(before, after), np.maximum(before, after)
        span = high - low
        share = np.where(span > 0.0, (high - line) / np.where(span > 0.0, span, 1.0), (high > line).astype(np.float64))
        return np.asarray(np.clip(share, 0.0, 1.0))


def poured(levels: Floats, amount: float, brim: float) -> Floats:
    """Return what each of ``levels`` (n,) gets of ``amount`` >= 0: the lowest fill first, none beyond ``brim``."""
    room = np.maximum(brim - levels, 0.0)
    if room.sum() <= amount or not amount:
        return room if amount else np.zeros_like(levels)
    rising = np.sort(levels)
    # The level at which the first k are even and hold all of the amount; it drowns just these where k is right.
    even = (amount + np.cumsum(rising)) / np.arange(1, len(rising) + 1)
    level = even[max(int((even > rising).sum()), 1) - 1]
    return np.asarray(np.clip(level - levels, 0.0, None))
