"""What a replica tells of one model's work, and how the reports of all replicas become what the fleet is asked.

An image arrives, is inside, and ends: answered, refused or failed. So those that arrived are those that ended and
those inside, and nothing needs to be counted on the way in.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models.errors import (
    ImageTooLargeError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    RequestError,
    UnsupportedImageError,
)
from models.scaling.policy import Demand

if TYPE_CHECKING:
    from collections.abc import Sequence

RATE_S: Final = 4.0
"""Rates are those of the last so many seconds: an order must not wait long, nor follow every burst."""
NO_WORK: Final = frozenset(
    error.code
    for error in (RequestError, InvalidImageError, UnsupportedImageError, ImageTooLargeError, InvalidOptionError)
)
"""Codes of images that more replicas would refuse as well."""


@dataclass(frozen=True, slots=True)
class Work:
    """One model's work in one replica.

    inside: images waiting or running. arriving, refused: images a second in the last RATE_S, and those of them that
    were turned away for lack of room. capacity: images a second that the replica can answer, 0 while not measured.
    image_s: seconds that an image takes which does not wait.
    """

    inside: float
    arriving: float
    refused: float
    capacity: float
    image_s: float


class WorkMeter:
    """Counts how one model's images end. Belongs to one event loop's thread."""

    def __init__(self) -> None:
        """Count from nothing."""
        self._ended = 0
        self._refused = 0
        self._seen: deque[tuple[float, int, int]] = deque()

    def answered(self) -> None:
        """Count an answer."""
        self._ended += 1

    def not_answered(self, code: str) -> None:
        """Count an image that ended with the error of that ``code``."""
        if code in NO_WORK:
            return
        self._ended += 1
        self._refused += code == OverloadedError.code

    def read(self, now: float, *, inside: int, capacity: float, image_s: float) -> Work:
        """Return the work at ``now`` (seconds, rising); the rates are those since the oldest reading of RATE_S."""
        latest = (now, self._ended + inside, self._refused)
        while len(self._seen) > 1 and self._seen[1][0] <= now - RATE_S:
            self._seen.popleft()
        since, arrived, refused = self._seen[0] if self._seen else latest
        self._seen.append(latest)
        span = now - since
        if span <= 0.0:
            return Work(inside, 0.0, 0.0, capacity, image_s)
        # An image that turns out to be none was inside and ends uncounted.
        arriving = max(latest[1] - arrived, 0) / span
        return Work(inside, arriving, (latest[2] - refused) / span, capacity, image_s)


def total(works: Sequence[Work]) -> Demand:
    """Return what one model asks of a fleet whose replicas told ``works``, at least one.

    The capacity is the middle one: a replica that has just started, or shares its cores with something, is no measure.
    """
    capacities = [each.capacity for each in works if each.capacity > 0.0]
    return Demand(
        inside=sum(each.inside for each in works),
        arriving=sum(each.arriving for each in works),
        capacity=statistics.median(capacities) if capacities else 0.0,
        image_s=statistics.median(each.image_s for each in works),
    )
