"""Which requests are looked at closely: a share of all, those whose caller asks for it, never more than so many."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from models.quota.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

CALLERS_A_SECOND: Final = 5.0
"""Requests a second that a replica traces because their callers ask for it: anybody may ask."""
CALLERS_BURST: Final = 10.0
_FLAGS: Final = slice(53, 55)
_SAMPLED: Final = 1


class Allowance:
    """So many a second, and so many at once."""

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        """Start full. now: seconds, as in ``take``."""
        self._bucket = Bucket(rate_per_s, burst, burst, now, now)

    def take(self, now: float) -> bool:
        """Return whether there was one left, and take it."""
        bucket = self._bucket.at(now)
        granted = bucket.level >= 1.0
        self._bucket = bucket.spend(1, now, now) if granted else bucket
        return granted


class Sampler:
    """Decides at a request's arrival whether it is traced."""

    def __init__(self, ratio: float, now: float, draw: Callable[[], float] = random.random) -> None:
        """Trace the share ``ratio`` (0 to 1) of the requests; ``draw`` returns numbers in [0, 1)."""
        self._ratio = ratio
        self._draw = draw
        self._callers = Allowance(CALLERS_A_SECOND, CALLERS_BURST, now)

    def wants(self, traceparent: str | None, now: float) -> bool:
        """Return whether to trace a request of that ``traceparent`` (W3C Trace Context, valid).

        What its caller does not trace is not traced here. What the caller traces is, up to CALLERS_A_SECOND; beyond
        that the request counts as one whose caller says nothing.
        """
        if traceparent is not None:
            if not int(traceparent[_FLAGS], 16) & _SAMPLED:
                return False
            if self._callers.take(now):
                return True
        return self._draw() < self._ratio
