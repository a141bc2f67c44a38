"""What the rollout actor knows of one model: frozen values.

The events that change it and the effects that it wants are named here, too, so that one import serves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from models.rollout.effects import (
    Admit,
    Announce,
    Audit,
    Claim,
    Decide,
    Depose,
    Effect,
    Fetch,
    ForgetMember,
    Judge,
    MoveAlias,
    Note,
    RecordMember,
    SavePin,
)
from models.rollout.events import (
    AdmitAsked,
    Claimed,
    Decided,
    DesiredRead,
    Event,
    Fetched,
    FetchFailed,
    Judged,
    JudgeFailed,
    MemberDied,
    MemberForgotten,
    MemberLeft,
    MemberRecorded,
    Polled,
    Recovered,
    RollbackAsked,
    Tick,
    TryTold,
)
from models.rollout.order import PLAIN, Order
from models.rollout.probation import ProbationLimits
from models.rollout.trial import TrialLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.rollout.gates import Verdict
    from models.rollout.messages import Attempt, Report, Target
    from models.rollout.policy import Pin, Rejection
    from models.weights.registry import Desired

__all__ = [
    "Admit",
    "AdmitAsked",
    "Announce",
    "Audit",
    "Claim",
    "Claimed",
    "Decide",
    "Decided",
    "Depose",
    "DesiredRead",
    "Effect",
    "Event",
    "Fetch",
    "FetchFailed",
    "Fetched",
    "ForgetMember",
    "Judge",
    "JudgeFailed",
    "Judged",
    "MemberDied",
    "MemberForgotten",
    "MemberLeft",
    "MemberRecorded",
    "MoveAlias",
    "Note",
    "Phase",
    "Polled",
    "RecordMember",
    "Recovered",
    "RollbackAsked",
    "SavePin",
    "State",
    "Tick",
    "Timing",
    "TryTold",
    "View",
]

Phase = Literal[
    "boot", "idle", "fetch", "judge", "claim", "bootstrap", "prepare", "trial", "hold", "commit", "abort", "deposed"
]
"""boot: the ledger is being read. judge: the gates are asked. bootstrap: nothing is committed, starting replicas try
the attempt. prepare: until every member has loaded it and runs the trial step under way. trial: while that step lasts.
hold: every member stops its batches, for the commit or for a canary step. commit, abort: the decision is being written.
deposed: a later life of the actor exists; this one acts no more."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds, and limits. ack_fraction: part of the hold deadline within which all must have acknowledged.

    judge_every_s: least time between two looks at evidence. latency_factor: of the latency gate, >= 1.
    trial, probation: what a candidate and a version that has just begun to serve are held to; no probation by default.
    isolation_s: strict mode, time after which a replica that is struck off the ledger answers nothing; None without.
    """

    hold_deadline_s: float = 0.5
    ack_fraction: float = 0.6
    fresh_s: float = 1.0
    death_margin_s: float = 1.0
    prepare_timeout_s: float = 120.0
    backoff_s: float = 1.0
    backoff_cap_s: float = 60.0
    hold_backoff_s: float = 0.2
    hold_backoff_cap_s: float = 5.0
    max_deaths: int = 3
    judge_every_s: float = 0.2
    latency_factor: float = 2.0
    trial: TrialLimits = field(default_factory=TrialLimits)
    probation: ProbationLimits = field(default_factory=lambda: ProbationLimits(window_s=0.0))
    isolation_s: float | None = None

    @property
    def burial_s(self) -> float:
        """Return how long a member that is proven dead is still waited for (seconds).

        From the proof on; in strict mode, where its process may live on a host that is cut off, from when it is struck
        off the ledger, and then the margin covers ticks that come late and clocks that run apart. Ray does not tell the
        death of a node from that of a process, so all deaths are waited for alike.
        """
        return self.death_margin_s + (self.isolation_s or 0.0)

    @property
    def strict(self) -> bool:
        """Return whether no replica that was counted out may answer with what was superseded, wherever it is."""
        return self.isolation_s is not None


@dataclass(frozen=True, slots=True)
class View:
    """One member as last heard of. admitted: durably recorded. seen: last report; died_at: proof of its death.

    struck_at: strict mode, when it was struck off the ledger for its death.
    """

    admitted: bool = False
    seen: float | None = None
    died_at: float | None = None
    report: Report | None = None
    struck_at: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """All that the actor knows of one model. Moments are on one monotonic clock, in seconds.

    restored: what the durable record of an earlier service says was committed; loaded before the desired version.
    aborted: generations above the committed one whose decision is ABORT.
    joining: replicas whose admission waits for a durable record or the first commit.
    trying: before the first commit, replicas that were told to load the attempt, and when.
    order, verdicts, deaths, hold_failures, advanced: of ``last``, the target tried most recently: what its promotion
    asked for; what the gates said; members that died while they prepared or tried it; holds that failed; trial steps
    that ended well, which another attempt need not repeat.
    stage: number of the trial step that the members run in this attempt, 0 for none. begun: when all of them did.
    judged, watched: last look at the evidence of the trial and of the probation.
    probation: since when the committed version is on probation, None where it is not. lost: members that died meanwhile
    while they answered with it. accepted: what its promotion asked for, None where this life did not commit it.
    retiring: what served before the last commit, until no member answers with it any more.
    hold_from: strict mode, when no replica can answer any more that an earlier life had struck off.
    """

    model: str
    timing: Timing = field(default_factory=Timing)
    incarnation: int = 0
    phase: Phase = "boot"
    since: float = 0.0
    committed: Attempt | None = None
    top: int = 0
    aborted: frozenset[int] = frozenset()
    members: Mapping[str, View] = field(default_factory=dict)
    joining: frozenset[str] = frozenset()
    trying: Mapping[str, float] = field(default_factory=dict)
    desired: Desired | None = None
    heard: bool = False
    restored: Target | None = None
    restored_previous: Target | None = None
    pin: Pin | None = None
    target: Target | None = None
    last: Target | None = None
    attempt: Attempt | None = None
    rejections: tuple[Rejection, ...] = ()
    order: Order = PLAIN
    verdicts: tuple[Verdict, ...] = ()
    deaths: int = 0
    hold_failures: int = 0
    advanced: int = 0
    stage: int = 0
    begun: float | None = None
    judged: float = float("-inf")
    watched: float = float("-inf")
    probation: float | None = None
    lost: int = 0
    accepted: Order | None = None
    retiring: Target | None = None
    not_before: float = 0.0
    hold_from: float = 0.0
    note: str = ""
