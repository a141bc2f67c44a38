"""A token bucket (RFC 2697's committed bucket, one token a request) whose spending is learned late, and fair division.

The level counts tokens that are lent out and not known to be spent, so what is free plus what is lent never exceeds the
burst. It follows that in any T seconds no more than ``rate * T + burst`` tokens are spent, however late that is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

BURST_S: Final = 1.0
"""A full bucket holds what comes in this time, and one token at least."""


def burst_of(rate_per_s: float) -> float:
    """Return the tokens of a full bucket."""
    return max(1.0, rate_per_s * BURST_S)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Level (tokens) at a moment (seconds on the owner's clock). full_since: since when it runs over, where it does."""

    rate_per_s: float
    burst: float
    level: float
    moment: float
    full_since: float

    @classmethod
    def filling(cls, rate_per_s: float, since: float, now: float, *, burst: float | None = None) -> Bucket:
        """Return the bucket that is empty until ``since`` and fills from then on."""
        return cls(rate_per_s, burst_of(rate_per_s) if burst is None else burst, 0.0, since, since).at(now)

    def at(self, now: float) -> Bucket:
        """Return the bucket at ``now``, with what has come in."""
        if now <= self.moment:
            return self
        missing = self.burst - self.level
        if missing <= 0.0:
            return Bucket(self.rate_per_s, self.burst, self.level, now, self.full_since)
        seconds = missing / self.rate_per_s
        if now - self.moment < seconds:
            level = self.level + self.rate_per_s * (now - self.moment)
            return Bucket(self.rate_per_s, self.burst, level, now, self.full_since)
        return Bucket(self.rate_per_s, self.burst, self.burst, now, self.moment + seconds)

    def spend(self, tokens: int, latest: float, now: float) -> Bucket:
        """Return the bucket once it is known that so many lent tokens were spent, the last of them at ``latest``.

        What ran over since then would have come in, had it been known at once: it does, up to what was spent.
        """
        bucket = self.at(now)
        if tokens <= 0:
            return bucket
        back = 0.0
        if bucket.level >= bucket.burst:
            back = min(float(tokens), bucket.rate_per_s * max(0.0, now - max(latest, bucket.full_since)))
        return Bucket(bucket.rate_per_s, bucket.burst, bucket.level - tokens + back, bucket.moment, now)

    def tuned(self, rate_per_s: float, burst: float, now: float) -> Bucket:
        """Return the bucket with another rate and burst from ``now`` on."""
        if (rate_per_s, burst) == (self.rate_per_s, self.burst):
            return self
        moment = max(now, self.moment)
        return Bucket(rate_per_s, burst, min(self.at(now).level, burst), moment, moment)

    def wait_s(self, tokens: float) -> float:
        """Return the seconds until so many have come in, 0 where they are there; more than a burst never will be."""
        return max(0.0, tokens - self.level) / self.rate_per_s


def divide(amount: int, wants: Sequence[int]) -> list[int]:
    """Return how much each gets of ``amount``: nobody more than it wants, and else alike, the first ones the rest.

    Max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2) in whole numbers.
    """
    shares = [0] * len(wants)
    waiting = [index for index, want in enumerate(wants) if want > 0]
    while amount > 0 and waiting:
        each = max(1, amount // len(waiting))
        for index in waiting:
            given = min(each, wants[index] - shares[index], amount)
            shares[index] += given
            amount -= given
        waiting = [index for index in waiting if shares[index] < wants[index]]
    return shares
