"""What the registry is told of a finished rollout. The audit file stays the record of truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class RolloutRun:
    """One finished attempt to bring a version to the fleet.

    ident: unique. result: ``committed``, ``rejected``, ``aborted`` or ``superseded``. reason: what spoke against it.
    from_version, from_digest: what served when it ended, "" for nothing. generation: 0 unless committed.
    who, asked: who promoted it or rolled back, and why, where this life of the rollout was told.
    tries: attempts at this target so far, this one included; those that failed in the same step have no run of their
    own. begun, ended: UTC. steps: name -> seconds. measured: name -> number, what gates and trials rest on.
    """

    ident: str
    model: str
    version: str
    digest: str
    from_version: str
    from_digest: str
    result: str
    reason: str
    who: str
    asked: str
    generation: int
    tries: int
    begun: datetime
    ended: datetime
    steps: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
