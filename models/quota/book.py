"""The book of a service: who holds how much of every key. What a replica gets comes out of what nobody holds.

Reports are absolute, so that a lost answer costs nothing: the next report says what arrived. A replica in silence:
its tokens count as spent when its lease ends; its permits come back when it is proven dead, or when every request that
it can have let in has ended. A book that begins grants nothing until all that its predecessor lent has run out, and
takes over the requests in flight that it is told of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from models.quota.bucket import Bucket, burst_of, divide
from models.quota.messages import HURRY_S, LEASE_S, REPORT_S, Allowance, Grant

if TYPE_CHECKING:
    from collections.abc import Collection

    from models.quota.messages import Claim, Limit, Report

OPENING_S: Final = 2.0
"""Time for which a new book grants nothing: its predecessor's leases end in half of it."""
FRESH_S: Final = 0.6
"""Age up to which what a replica wanted is set aside for it: two reports may get lost."""
SUSPECT_S: Final = 0.7
"""Silence after which it is worth asking whether a replica lives."""
CONTENDED_S: Final = 2.0
"""Time for which a key counts as contended after the last time it was."""
FORGET_S: Final = 60.0
"""Time for which the book remembers a replica that holds nothing: reports may be late."""
_ALMOST: Final = 1e-9
"""What floating-point arithmetic may lack of a whole token."""


@dataclass(slots=True)
class _Holding:
    """One replica's part of one key; tokens and permits are the most it can have."""

    spent: int
    tokens: int = 0
    tokens_wanted: int = 0
    got_token: float = -math.inf
    permits: int = 0
    permits_wanted: int = 0
    got_permit: float = -math.inf


@dataclass(slots=True)
class _Key:
    limit: Limit
    bucket: Bucket | None = None
    holdings: dict[str, _Holding] = field(default_factory=dict)
    contended_until: float = -math.inf
    last: str = ""
    """The replica that got a permit last."""


@dataclass(slots=True)
class _Replica:
    number: int
    heard: float
    longest_s: float


class QuotaBook:
    """State machine of one owner; ``now`` is monotonic seconds on its clock."""

    def __init__(self, now: float, *, opening_s: float = OPENING_S) -> None:
        """Begin. opening_s: 0 only where there was no book before."""
        self._opens = now + opening_s
        self._keys: dict[str, _Key] = {}
        self._replicas: dict[str, _Replica] = {}

    def take(self, report: Report, replicas: int, now: float) -> Grant:
        """Note a report and answer it. replicas: of the service, as far as known."""
        self._age(now)
        replicas = max(1, replicas, sum(now - each.heard < FRESH_S for each in self._replicas.values()))
        known = self._replicas.get(report.replica)
        if known is not None and report.number <= known.number:
            return Grant(report.number, replicas)
        self._replicas[report.replica] = _Replica(report.number, now, report.longest_s)
        self._drop_all_but({claim.key for claim in report.claims}, report.replica, now)
        opens_in_s = self._opens - now
        answers: list[Allowance] = []
        for claim in report.claims:
            key = self._key(claim, now)
            holding = key.holdings.setdefault(report.replica, _Holding(claim.spent))
            kept = _settle(key, holding, claim, now)
            holding.tokens_wanted = holding.permits_wanted = 0
            if opens_in_s <= 0.0:
                answers.append(self._allow(key, report.replica, claim, kept, now))
            if claim.empty:
                self._drop(key, report.replica, now)
        return Grant(report.number, replicas, max(0.0, opens_in_s), tuple(answers))

    def suspects(self, now: float) -> frozenset[str]:
        """Return the silent replicas that hold permits which others want."""
        return frozenset(
            replica
            for key in self._keys.values()
            if now < key.contended_until
            for replica, holding in key.holdings.items()
            if holding.permits and now - self._replicas[replica].heard > SUSPECT_S
        )

    def bury(self, dead: Collection[str], now: float) -> None:
        """Take back what replicas hold whose processes are proven dead."""
        for replica in dead:
            self._drop_all_but((), replica, now)
            self._replicas.pop(replica, None)

    # Time

    def _age(self, now: float) -> None:
        for replica, seen in [*self._replicas.items()]:
            silent = now - seen.heard
            if silent <= LEASE_S:
                continue
            for key in self._keys.values():
                holding = key.holdings.get(replica)
                if holding is not None and holding.tokens:
                    _bury_tokens(key, holding, now)
            # A request let in at the lease's end is the last one to end.
            if silent > LEASE_S + seen.longest_s:
                self._drop_all_but((), replica, now)
                if silent > LEASE_S + seen.longest_s + FORGET_S:
                    del self._replicas[replica]

    def _drop_all_but(self, used: Collection[str], replica: str, now: float) -> None:
        for name in [name for name, key in self._keys.items() if replica in key.holdings and name not in used]:
            self._drop(self._keys[name], replica, now)
        # A full bucket that nobody uses is what a key that was never seen gets.
        for name in [name for name, key in self._keys.items() if not key.holdings and _is_idle(key, now)]:
            del self._keys[name]

    def _drop(self, key: _Key, replica: str, now: float) -> None:
        _bury_tokens(key, key.holdings.pop(replica), now)

    def _key(self, claim: Claim, now: float) -> _Key:
        key = self._keys.get(claim.key)
        if key is None:
            key = self._keys[claim.key] = _Key(claim.limit)
        rate = claim.limit.rate_per_s
        if rate is None:
            key.bucket = None
        elif key.bucket is None:
            key.bucket = Bucket.filling(rate, self._opens, now)
        else:
            key.bucket = key.bucket.tuned(rate, burst_of(rate), now).at(now)
        key.limit = claim.limit
        return key

    # Division

    def _allow(self, key: _Key, replica: str, claim: Claim, kept: int, now: float) -> Allowance:
        tokens, retry_s = self._lend(key, replica, claim.tokens_wanted, now)
        permits = self._permit(key, replica, claim.permits_wanted, now)
        contended = now < key.contended_until
        again_s = HURRY_S if contended else REPORT_S
        rate = key.limit.rate_per_s
        if tokens < claim.tokens_wanted and rate is not None and rate * REPORT_S < 1.0:
            # A token that waits for its turn while the bucket is full is lost.
            again_s = min(again_s, max(HURRY_S, retry_s))
        return Allowance(claim.key, kept, tokens, permits, retry_s, again_s, contended)

    def _lend(self, key: _Key, replica: str, wanted: int, now: float) -> tuple[int, float]:
        """Return the tokens that ``replica`` gets now, and the time until the next one may be there for it."""
        if key.bucket is None:
            return 0, 0.0
        ours = key.holdings[replica]
        ours.tokens_wanted = wanted
        if not wanted:
            return 0, 0.0
        queue = sorted(
            (each for name, each in key.holdings.items() if each.tokens_wanted and self._fresh(name, now)),
            key=lambda each: each.got_token,
        )
        lent = sum(each.tokens for each in key.holdings.values())
        free = key.bucket.level - lent
        place = next(index for index, each in enumerate(queue) if each is ours)
        got = divide(math.floor(free + _ALMOST), [each.tokens_wanted for each in queue])[place]
        if got:
            ours.tokens += got
            ours.tokens_wanted -= got
            ours.got_token = now
        ahead = sum(1 for each in queue if each is not ours and each.got_token <= ours.got_token)
        return got, key.bucket.wait_s(lent + got + ahead + 1.0)

    def _permit(self, key: _Key, replica: str, wanted: int, now: float) -> int:
        """Return the permits that ``replica`` may use from now on, fewer than it has where others are to get some."""
        limit = key.limit.concurrency
        if limit is None:
            return 0
        ours = key.holdings[replica]
        ours.permits_wanted = wanted
        present = [name for name, each in key.holdings.items() if each.permits_wanted and self._fresh(name, now)]
        absent = sum(each.permits for name, each in key.holdings.items() if not self._fresh(name, now))
        if limit - absent < len(present):
            # Not one for each: whoever had one last is last.
            present.sort(key=lambda name: (key.holdings[name].got_permit, name))
        else:
            present.sort()
        wants = [key.holdings[name].permits_wanted for name in present]
        shares = dict(zip(present, divide(max(0, limit - absent), wants), strict=True))
        # More may be in flight than the limit, let in by replicas that were alone: then none may begin here, either.
        free = limit - sum(each.permits for each in key.holdings.values())
        allowed = min(shares.get(replica, 0), max(0, ours.permits + free))
        if allowed > ours.permits:
            ours.permits, ours.got_permit = allowed, now
            moves, key.last = key.last != replica and now < key.contended_until, replica
        else:
            moves = False
        if moves or allowed < wanted or sum(wants) > limit - absent:
            key.contended_until = now + CONTENDED_S
        return allowed

    def _fresh(self, replica: str, now: float) -> bool:
        return now - self._replicas[replica].heard <= FRESH_S


def _settle(key: _Key, holding: _Holding, claim: Claim, now: float) -> int:
    """Note what a replica spent, gave back and keeps in flight; return the tokens in its hand that count."""
    spent = min(max(0, claim.spent - holding.spent), holding.tokens)
    if key.bucket is not None:
        key.bucket = key.bucket.spend(spent, now - claim.spent_age_s, now)
    holding.spent = claim.spent
    holding.tokens = min(claim.tokens, holding.tokens - spent)
    holding.permits = claim.permits
    return holding.tokens


def _bury_tokens(key: _Key, holding: _Holding, now: float) -> None:
    """Count tokens as spent just now of which nobody can tell."""
    if key.bucket is not None:
        key.bucket = key.bucket.spend(holding.tokens, now, now)
    holding.tokens = 0


def _is_idle(key: _Key, now: float) -> bool:
    full = key.bucket is None or key.bucket.at(now).level >= key.bucket.burst
    return full and now >= key.contended_until
