"""A replica's share of every key's limits: what it may let in by itself, what it reports, and what it does unanswered.

While the book answers, requests are let in by its tokens and permits alone. Unanswered, a share uses what it still
holds until its lease ends, and beside it the key's limits divided by the last known number of replicas: a bucket of
that rate, from which everything that was let in before is taken too, and at least one request in flight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from models.quota.bucket import Bucket, burst_of
from models.quota.messages import LEASE_S, REPORT_S, Claim, Report

if TYPE_CHECKING:
    from models.quota.messages import Allowance, Grant, Limit

Reason = Literal["rate", "concurrency"]

MOST_WAITING: Final = 64
"""Requests of one key that may wait for a token or permit; more are refused at once."""
KICK_S: Final = 0.02
"""Least time between two reports (seconds)."""
LONGEST_PAUSE_S: Final = 1.0
"""Longest time between two reports that nobody answers (seconds)."""
NO_ADVICE_S: Final = 1.0
"""What a client is told to wait where nothing can be computed: who holds permits is not known to give them back."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request is let in, and else why not now.

    wait: it may be, soon. ask: if the book is asked now. retry_s: when to come again, where it is refused.
    """

    reason: Reason | None = None
    wait: bool = False
    ask: bool = False
    retry_s: float = 0.0


ADMITTED: Final = Verdict()


@dataclass(slots=True)
class _Portion:
    """One key here. permits: most in flight by the book's word. own: what may be let in unanswered."""

    limit: Limit
    own: Bucket | None
    tokens: int = 0
    spent: int = 0
    spent_at: float = 0.0
    permits: int = 0
    in_flight: int = 0
    peak: int = 0
    asked: int = 0
    waiting: int = 0
    contended: bool = False
    none_until: float = -math.inf
    """The book had no more tokens: until then none is waited for."""
    retry_at: float = -math.inf
    claim: Claim | None = None

    @property
    def used(self) -> bool:
        return bool(self.in_flight or self.asked or self.waiting)

    @property
    def told(self) -> bool:
        """Return whether the book believes, by our last report, that we hold or want something."""
        return self.claim is not None and not self.claim.empty


class QuotaShare:
    """State machine of one replica; ``now`` is monotonic seconds on its clock. One report is under way at a time."""

    def __init__(self, replica: str, *, replicas: int, longest_s: float) -> None:
        """Hold nothing. replicas: of the service, until the book says. longest_s: most that a request can last."""
        self._replica, self._replicas, self._longest_s = replica, max(1, replicas), longest_s
        self._portions: dict[str, _Portion] = {}
        self._number = 0
        self._sent = self._next = -math.inf
        self._lease_until = -math.inf
        self._pause_s = 0.0
        self.unanswered = False
        """Whether the last report was not answered, or by a book that grants nothing yet."""

    # Requests

    def admit(self, key: str, limit: Limit, now: float, *, again: bool = False) -> Verdict:
        """Let a request of ``key`` in, or say why not now. again: one that has waited asks once more."""
        portion = self._portion(key, limit, now)
        if not again:
            portion.asked += 1
        reason = self._missing(portion, now)
        if reason is None:
            self._enter(portion, now)
            return ADMITTED
        if reason == "concurrency":
            return Verdict(reason, portion.waiting < MOST_WAITING, not portion.contended, NO_ADVICE_S)
        if self.unanswered and portion.own is not None:
            return Verdict(reason, retry_s=portion.own.at(now).wait_s(1.0))
        wait = now >= portion.none_until and portion.waiting < MOST_WAITING
        return Verdict(reason, wait, wait, max(0.0, portion.retry_at - now))

    def leave(self, key: str) -> bool:
        """Note that a request that was let in has ended; return whether others wait for a permit that is idle now."""
        portion = self._portions.get(key)
        if portion is None or not portion.in_flight:
            return False
        portion.in_flight -= 1
        if not portion.contended or portion.claim is None:
            return False
        need = portion.in_flight + min(portion.waiting, max(0, portion.permits - portion.in_flight))
        return need < portion.claim.permits

    def wait(self, key: str, change: int) -> None:
        """Note that one request more (+1) or fewer (-1) of ``key`` waits."""
        self._portions[key].waiting += change

    def _missing(self, portion: _Portion, now: float) -> Reason | None:
        if portion.limit.concurrency is not None and portion.in_flight >= self._most_in_flight(portion, now):
            return "concurrency"
        if portion.own is None or (portion.tokens and now < self._lease_until):
            return None
        if self.unanswered and portion.own.at(now).level >= 1.0:
            return None
        return "rate"

    def _most_in_flight(self, portion: _Portion, now: float) -> int:
        leased = portion.permits if now < self._lease_until else 0
        if not self.unanswered or portion.limit.concurrency is None:
            return leased
        return max(leased, portion.limit.concurrency // self._replicas, 1)

    def _enter(self, portion: _Portion, now: float) -> None:
        portion.in_flight += 1
        portion.peak = max(portion.peak, portion.in_flight)
        if portion.own is None:
            return
        if portion.tokens and now < self._lease_until:
            portion.tokens -= 1
            portion.spent += 1
            portion.spent_at = now
        own = portion.own.at(now)
        portion.own = own.spend(1, now, now) if own.level >= 1.0 else own

    # Reports

    @property
    def idle(self) -> bool:
        """Return whether there is nothing to report."""
        return not any(each.used or (each.told and not self.unanswered) for each in self._portions.values())

    def due_s(self, now: float, *, hurry: bool = False) -> float:
        """Return the seconds until the next report. hurry: since the last, a verdict said to ask, or ``leave`` True."""
        due = min(self._next, self._sent + KICK_S) if hurry and not self._pause_s else self._next
        return max(0.0, due - now)

    def report(self, now: float) -> Report:
        """Return what to tell the book; the report before counts as unanswered if it was not answered yet."""
        self._number += 1
        self._sent = now
        if now >= self._lease_until:
            for portion in self._portions.values():
                portion.tokens = 0
        for key, portion in self._portions.items():
            portion.claim = self._claim(key, portion, now) if portion.used or portion.told else None
            portion.asked, portion.peak = 0, portion.in_flight
        claims = tuple(each.claim for each in self._portions.values() if each.claim is not None)
        return Report(self._replica, self._number, self._longest_s, claims)

    def _claim(self, key: str, portion: _Portion, now: float) -> Claim:
        tokens = wanted = 0
        if portion.own is not None and portion.limit.rate_per_s is not None:
            demand = min(max(portion.asked, portion.waiting), math.floor(burst_of(portion.limit.rate_per_s)))
            portion.tokens = tokens = min(portion.tokens, demand)
            wanted = demand - tokens
        permits = permits_wanted = 0
        if portion.limit.concurrency is not None:
            permits_wanted = portion.in_flight + portion.waiting
            if not portion.contended:
                permits_wanted = max(permits_wanted, portion.peak)
            permits_wanted = min(permits_wanted, max(portion.limit.concurrency, portion.in_flight))
            portion.permits = min(portion.permits, permits_wanted)
            permits = max(portion.in_flight, min(self._most_in_flight(portion, now), permits_wanted))
        age_s = max(0.0, now - portion.spent_at)
        return Claim(key, portion.limit, tokens, portion.spent, age_s, wanted, permits, permits_wanted)

    def accept(self, grant: Grant, now: float) -> None:
        """Take the answer to the latest report."""
        if grant.number != self._number:
            return
        self._replicas = max(1, grant.replicas)
        self._pause_s = 0.0
        self.unanswered = grant.opens_in_s > 0.0
        if self.unanswered:
            self._next = now + min(REPORT_S, grant.opens_in_s)
            return
        self._lease_until = self._sent + LEASE_S
        self._next = now + REPORT_S
        for allowance in grant.allowances:
            idle = self._take(self._portions[allowance.key], allowance, now)
            # Others wait for what we were told to give back.
            self._next = min(self._next, self._sent + KICK_S if idle else now + allowance.again_s)
        for key in [key for key, each in self._portions.items() if self._forgettable(each, now)]:
            del self._portions[key]

    def fail(self, now: float) -> None:
        """Note that the latest report was not answered."""
        self.unanswered = True
        self._pause_s = min(LONGEST_PAUSE_S, max(REPORT_S, 2.0 * self._pause_s))
        self._next = now + self._pause_s

    def _take(self, portion: _Portion, allowance: Allowance, now: float) -> bool:
        """Take the book's word on one key; return whether permits are idle that it wants back."""
        claim = portion.claim
        if claim is None:
            return False
        since = portion.spent - claim.spent
        portion.tokens = max(0, min(portion.tokens, allowance.kept - since)) + allowance.tokens
        portion.permits = allowance.permits
        portion.contended = allowance.contended
        portion.retry_at = now + allowance.retry_s
        portion.none_until = now + REPORT_S if allowance.tokens < claim.tokens_wanted else -math.inf
        return max(allowance.permits, portion.in_flight) < claim.permits

    # Keys

    def _portion(self, key: str, limit: Limit, now: float) -> _Portion:
        portion = self._portions.get(key)
        if portion is None:
            portion = self._portions[key] = _Portion(limit, None)
            portion.own = self._own(portion, now)
        elif portion.limit != limit or (self.unanswered and portion.own is not None):
            portion.limit = limit
            portion.own = self._own(portion, now)
        return portion

    def _own(self, portion: _Portion, now: float) -> Bucket | None:
        """Return the bucket of this replica's part of the rate; a new one is full."""
        if portion.limit.rate_per_s is None:
            return None
        rate = portion.limit.rate_per_s / self._replicas
        burst = max(1.0, burst_of(portion.limit.rate_per_s) / self._replicas)
        return portion.own.tuned(rate, burst, now) if portion.own else Bucket(rate, burst, burst, now, now)

    def _forgettable(self, portion: _Portion, now: float) -> bool:
        if portion.used or portion.told or portion.tokens:
            return False
        return portion.own is None or portion.own.at(now).level >= portion.own.burst
