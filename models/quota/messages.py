"""What a replica reports of its keys, and what it is granted. Durations are in seconds; no clock is compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REPORT_S: Final = 0.2
"""Time between two reports of a replica whose limited keys are in use."""
HURRY_S: Final = 0.05
"""The same while requests of a key wait for what another replica holds."""
LEASE_S: Final = 1.0
"""Time after sending a report that was answered for which the replica may use what it was granted."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of one key. rate_per_s: requests a second, > 0. concurrency: requests in flight, >= 1. None: none."""

    rate_per_s: float | None = None
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica has and wants of one key; counts are >= 0."""

    key: str
    limit: Limit
    tokens: int = 0
    """Tokens in hand. Those that earlier answers brought and that are not among them are given back."""
    spent: int = 0
    """Tokens spent since the replica began."""
    spent_age_s: float = 0.0
    """Time since the latest was spent."""
    tokens_wanted: int = 0
    """Beyond those in hand."""
    permits: int = 0
    """Most requests that the replica lets be in flight until it is answered."""
    permits_wanted: int = 0
    """In all."""

    @property
    def empty(self) -> bool:
        """Return whether the replica holds and wants nothing."""
        return not (self.tokens or self.tokens_wanted or self.permits or self.permits_wanted)


@dataclass(frozen=True, slots=True)
class Report:
    """All keys of which a replica holds or wants something. A key that is missing is one that it does not use."""

    replica: str
    number: int
    """From 1 on. A report that comes after a later one counts for nothing."""
    longest_s: float
    """Longest time that a request of the replica can be in flight."""
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a replica may do with one key."""

    key: str
    kept: int
    """Of the tokens that it reported in hand, those that it may still spend."""
    tokens: int
    """Further tokens."""
    permits: int
    """Requests that may be in flight; where fewer than are, none may begin."""
    retry_s: float
    """Time until a token may be there for this replica."""
    again_s: float
    """Time until its next report at the latest."""
    contended: bool
    """Whether replicas want more permits than there are: nobody keeps idle ones then."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to the report of that number.

    replicas: of the service, >= 1. opens_in_s: > 0 where the book is new and grants nothing yet.
    """

    number: int
    replicas: int
    opens_in_s: float = 0.0
    allowances: tuple[Allowance, ...] = ()
