"""What everybody in a fake fleet shares: time, messages on their way, the ledger, the registry's alias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models.rollout import ledger, state
from models.rollout.fake_fleet.clients import Clients
from models.rollout.messages import Target
from models.rollout.order import PLAIN, Order
from models.rollout.probation import ProbationLimits
from models.rollout.trial import TrialLimits, steps
from models.weights.registry import Desired

if TYPE_CHECKING:
    from models.rollout import policy
    from models.rollout.fake_fleet.actor import FakeActor
    from models.rollout.fake_fleet.replica import FakeReplica

MODEL = "m"
FLAWS = (
    "no_hold", "decide_alone", "no_death_margin", "members_from_polls", "admit_any_time", "no_fence",
    "canary_without_hold", "endless_trial", "blind_judge", "no_gate", "forgotten_refusals",
    "deaf_to_rollbacks",
)  # fmt: skip
"""Rules of the protocol that a fleet can be told to break, to prove that the checks would notice."""
FIRST_GOOD = Target("1", "d1", "p1")
BAD = frozenset({"d3", "d6"})
"""Digests that fail when a replica prepares them."""
WEAK = frozenset({"d5"})
"""Digests that a gate refuses."""
WORSE = frozenset({"d4"})
"""Digests that fail on live images only."""

STRICT_FLAWS = ("no_isolation_wait", "answers_when_cut_off", "hasty_new_life")
"""The same for fleets in strict mode."""
ISOLATION_S = 2.0

Chooser = Callable[[int], int]
"""Return a number from 0 up to, and without, its argument."""


class ViolationError(AssertionError):
    """The protocol broke a promise."""


class World:
    """``events`` counts what happened, so that a test can prove that its runs reached the rare cases.

    Attributes: commits is digest by generation; observed, the highest generation that a client has seen; mail holds
    (kind, replica, payload) in the order sent; actor is the life in charge and earlier one that still runs beside it.
    orders is by promotion id; begun, when a trial step of a target first began on a replica; refused, the targets that
    were refused for good after the first commit; called_off, those under way when somebody asked for a rollback.
    """

    def __init__(self, choose: Chooser, flaws: frozenset[str], *, strict: bool = False) -> None:
        """Start with version 1 promoted and nobody there."""
        self.strict = strict
        self.choose, self.flaws = choose, flaws
        self.now = 0.0
        self.events: Counter[str] = Counter()
        self.data: dict[str, str] = {}
        self.reachable = True
        self.commits: dict[int, str] = {}
        self.observed = 0
        self.mail: list[tuple[str, str, Any]] = []
        self.alias = Desired(MODEL, FIRST_GOOD.version, FIRST_GOOD.digest, "ready", FIRST_GOOD.promotion)
        self.stored_pin: policy.Pin | None = None
        self.stored_rejections: str | None = None
        margin = 0.0 if "no_death_margin" in flaws else 1.0
        self.timing = state.Timing(
            prepare_timeout_s=20.0,
            death_margin_s=margin,
            trial=TrialLimits(least_images=2),
            probation=ProbationLimits(window_s=3.0, least_images=2),
            isolation_s=ISOLATION_S if strict and "no_isolation_wait" not in flaws else None,
        )
        self.orders: dict[str, Order] = {}
        self.begun: dict[tuple[Target, int], float] = {}
        self.refused: set[Target] = set()
        self.called_off: set[Target] = set()
        self.clients = Clients()
        self.actor: FakeActor | None = None
        self.earlier: FakeActor | None = None
        self.replicas: dict[str, FakeReplica] = {}

    def perform(self, op: ledger.Op) -> ledger.Result:
        """Apply one operation to the ledger and remember commits for the checks."""
        match op:
            case ledger.Put(key, value):
                standing = self.data.setdefault(key, value)
                if key.startswith(f"{MODEL}/decision/"):
                    self._decided(int(key.rpartition("/")[2]), standing, first=standing == value)
                return standing
            case ledger.Get(key):
                return None if "no_fence" in self.flaws and key.startswith("incarnation/") else self.data.get(key)
            case ledger.Keys(prefix):
                return [key for key in self.data if key.startswith(prefix)]
            case ledger.Delete(key):
                self.data.pop(key, None)
        return None

    def _decided(self, generation: int, standing: str, *, first: bool) -> None:
        if standing == "ABORT":
            self.clients.ended.add(generation)
        elif first:
            self._committed(generation)

    def _committed(self, generation: int) -> None:
        claimed = self.data.get(f"{MODEL}/claim/{generation}")
        if claimed is None:
            msg = f"I4: generation {generation} is committed and nobody knows what it is"
            raise ViolationError(msg)
        attempt = ledger.decode(claimed)
        target, digest = attempt.target, attempt.target.digest
        self.commits[generation] = digest
        if digest in BAD:
            msg = f"I3: generation {generation} commits {digest}, which fails"
            raise ViolationError(msg)
        if target in self.refused:
            msg = f"generation {generation} commits {digest}, which was refused for good"
            raise ViolationError(msg)
        if target in self.called_off:
            msg = f"generation {generation} commits {digest} after a rollback had taken that promotion back"
            raise ViolationError(msg)
        if attempt.previous is not None and not attempt.rollback:
            self._judged(attempt.target)

    def _judged(self, target: Target) -> None:
        if target.digest in WEAK:
            msg = f"{target.digest} is committed against the word of a gate"
            raise ViolationError(msg)
        wanted = steps(self.orders.get(target.promotion, PLAIN))
        if wanted and target.digest in WORSE:
            msg = f"{target.digest} is committed although it failed on live images"
            raise ViolationError(msg)
        begun = [self.begun.get((target, step.number)) for step in wanted]
        ends = [*begun[1:], self.now][: len(begun)]
        for step, begin, end in zip(wanted, begun, ends, strict=True):
            if begin is None or end is None or end - begin < step.length_s:
                msg = f"{target.digest} is committed before its trial step {step.number} was over"
                raise ViolationError(msg)
