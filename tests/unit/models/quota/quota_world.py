"""A whole service's quota in a process: replicas, a book that may restart, and a network that delays and loses."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from models.quota.book import OPENING_S, QuotaBook
from models.quota.bucket import burst_of
from models.quota.share import QuotaShare

if TYPE_CHECKING:
    from models.quota.messages import Grant, Limit, Report

KEY = "k"
STEP_S = 0.01
WAIT_S = 0.3
ASK_S = 0.25
LONGEST_S = 2.0


@dataclass(frozen=True)
class Admission:
    """One request that was let in. own: by the replica's part of the limit, not by what the book granted."""

    moment: float
    replica: str
    own_token: bool


@dataclass
class InFlight:
    """One request: when it ends, and whether it took a permit that the book granted."""

    end: float
    own: bool


@dataclass
class Replica:
    """What ``serve/quota.py`` does around a share, in steps of time."""

    name: str
    share: QuotaShare
    demand_hz: float
    work_s: float
    waiting: list[float] = field(default_factory=list)
    in_flight: list[InFlight] = field(default_factory=list)
    asked_at: float | None = None
    number: int = 0
    hurry: bool = False
    admitted: int = 0
    refused: list[str] = field(default_factory=list)
    first: float | None = None


@dataclass
class World:
    """Steps of 10 ms. loss: of each message. longest_delay_s: of a message. Restarts and deaths at their moments."""

    limit: Limit
    seed: int
    replicas: int = 3
    demand_hz: float = 30.0
    work_s: float = 0.05
    loss: float = 0.0
    longest_delay_s: float = 0.02
    opening_s: float = OPENING_S
    longest_s: float = LONGEST_S
    now: float = 100.0
    down_until: float = 0.0

    def __post_init__(self) -> None:
        """Begin with a book that has long been open."""
        self.random = Random(self.seed)  # noqa: S311 - chance in a test is no secret
        self.book = QuotaBook(self.now - 1000.0, opening_s=0.0)
        self.alive = [self._replica(f"r{index}") for index in range(self.replicas)]
        self.dead: set[str] = set()
        self.network: list[tuple[float, str, Report | Grant]] = []
        self.log: list[Admission] = []
        self.most_by_book = 0
        self.reports = 0

    def _replica(self, name: str) -> Replica:
        share = QuotaShare(name, replicas=self.replicas, longest_s=self.longest_s)
        return Replica(name, share, self.demand_hz, self.work_s)

    def kill(self, index: int) -> None:
        """End a replica and what it had in flight; another of a new name takes its place."""
        self.dead.add(self.alive[index].name)
        self.alive[index] = self._replica(f"{self.alive[index].name}'")

    def restart(self, down_s: float = 0.5) -> None:
        """Begin a new life of the book, which knows nothing."""
        self.down_until = self.now + down_s
        self.network = [each for each in self.network if not hasattr(each[2], "claims")]
        self.book = QuotaBook(self.down_until, opening_s=self.opening_s)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.step()

    def step(self) -> None:
        """Let 10 ms pass."""
        self.now += STEP_S
        self._deliver()
        for replica in self.alive:
            self._end_work(replica)
            if self.random.random() < replica.demand_hz * STEP_S:
                self.request(replica)
            for deadline in [each for each in replica.waiting if each <= self.now]:
                replica.waiting.remove(deadline)
                replica.share.wait(KEY, -1)
                replica.refused.append("waited")
            self._ask(replica)
        by_book = sum(not each.own for replica in self.alive for each in replica.in_flight)
        self.most_by_book = max(self.most_by_book, by_book)
        suspects = self.book.suspects(self.now)
        if suspects & self.dead and self.now >= self.down_until:
            self.book.bury(suspects & self.dead, self.now)

    # Requests

    def request(self, replica: Replica) -> None:
        """Send one request to ``replica``."""
        before = self._look(replica)
        verdict = replica.share.admit(KEY, self.limit, self.now)
        if verdict.reason is None:
            self._admitted(replica, before)
        elif verdict.wait:
            replica.waiting.append(self.now + WAIT_S)
            replica.share.wait(KEY, 1)
            replica.hurry |= verdict.ask
        else:
            replica.refused.append(verdict.reason)

    def _call_in(self, replica: Replica) -> None:
        while replica.waiting:
            before = self._look(replica)
            if replica.share.admit(KEY, self.limit, self.now, again=True).reason is not None:
                return
            replica.waiting.pop(0)
            replica.share.wait(KEY, -1)
            self._admitted(replica, before)

    def _look(self, replica: Replica) -> tuple[int, int]:
        portion = replica.share._portions.get(KEY)
        if portion is None:
            return 0, 0
        leased = portion.permits if self.now < replica.share._lease_until else 0
        return portion.spent, leased - portion.in_flight

    def _admitted(self, replica: Replica, before: tuple[int, int]) -> None:
        own_token = self._look(replica)[0] == before[0]
        self.log.append(Admission(self.now, replica.name, own_token))
        replica.in_flight.append(InFlight(self.now + min(replica.work_s, LONGEST_S), before[1] <= 0))
        replica.admitted += 1
        replica.first = replica.first or self.now

    def _end_work(self, replica: Replica) -> None:
        for each in [each for each in replica.in_flight if each.end <= self.now]:
            replica.in_flight.remove(each)
            replica.hurry |= replica.share.leave(KEY)
            self._call_in(replica)

    # Reports

    def _ask(self, replica: Replica) -> None:
        share = replica.share
        if replica.asked_at is not None:
            if self.now - replica.asked_at < ASK_S:
                return
            replica.asked_at = None
            share.fail(self.now)
            self._call_in(replica)
        if not share.idle and share.due_s(self.now, hurry=replica.hurry) <= 0.0:
            replica.hurry = False
            report = share.report(self.now)
            self.reports += 1
            replica.asked_at, replica.number = self.now, report.number
            self._send(replica.name, report)

    def _send(self, replica: str, message: Report | Grant) -> None:
        if self.random.random() >= self.loss:
            self.network.append((self.now + self.random.random() * self.longest_delay_s, replica, message))

    def _deliver(self) -> None:
        due = [each for each in self.network if each[0] <= self.now]
        self.network = [each for each in self.network if each[0] > self.now]
        for _, name, message in due:
            if hasattr(message, "claims"):
                if self.now >= self.down_until:
                    self._send(name, self.book.take(message, self.replicas, self.now))
                continue
            for replica in self.alive:
                if replica.name == name and replica.asked_at is not None and replica.number == message.number:
                    replica.asked_at = None
                    replica.share.accept(message, self.now)
                    self._call_in(replica)

    # Laws

    def overdraft(self, *, own: str | None = None, rate: float = 0.0, burst: float = 0.0) -> float:
        """Return the most tokens that lack in the ideal bucket that was full at first; own: of that replica alone."""
        rate = rate or self.limit.rate_per_s or 0.0
        burst = burst or burst_of(rate)
        level, moment, lack = burst, 0.0, 0.0
        for each in self.log:
            if each.own_token != (own is not None) or (own is not None and each.replica != own):
                continue
            level = min(burst, level + rate * (each.moment - moment)) - 1.0
            moment = each.moment
            lack = max(lack, -level)
        return lack
