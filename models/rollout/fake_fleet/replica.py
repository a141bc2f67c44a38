"""One replica in a fake fleet: the real member machine, and an engine with three slots."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

from models.evidence import Evidence, Pairs, Tally
from models.rollout import ledger, member
from models.rollout.fake_fleet.world import BAD, ISOLATION_S, MODEL, WORSE, ViolationError
from models.rollout.messages import Failure, Join
from models.rollout.order import PLAIN

if TYPE_CHECKING:
    from models.rollout.fake_fleet.world import World
    from models.rollout.messages import Attempt, Report
    from models.rollout.trial import TrialStep

IMAGES_A_SECOND = 20


class FakeReplica:
    """The process, its member machine and its engine.

    Attributes: wish is what it was told to load to join, loaded whether it has; active is (generation, digest),
    previous and candidate are digests; trial is (generation, digest, step) and trial_at when it began; flipped_at, when
    a commit made it answer with something else; joined, the turn of its admission; asking, the generation it must ask
    the ledger about; confirming, when it wanted to know whether it is counted; listed, whether its name is among the
    live ones; cut_off, whether its host reaches nobody but its clients; gone_at, when its process ends.
    """

    def __init__(self, name: str, world: World) -> None:
        """Start with nothing loaded."""
        self._world = world
        self.name = name
        self.state: member.MemberState | None = None
        self.wish: Join | None = None
        self.loaded = False
        self.active: tuple[int, str] | None = None
        self.previous: str | None = None
        self.candidate: str | None = None
        self.preparing: member.Prepare | None = None
        self.asking: int | None = None
        self.confirming: float | None = None
        self.cut_off = False
        self.held = self.failing = self.paused = False
        self.trial: tuple[int, str, TrialStep] | None = None
        self.trial_at = self.flipped_at = 0.0
        self.joined = 0
        self.listed = True
        self.gone_at: float | None = None

    @property
    def may_start(self) -> bool:
        """Return whether a batch could start on this replica at this moment."""
        return self.state is not None and not (self.held or self.failing or self.paused)

    @property
    def busy(self) -> bool:
        """Return whether it loads a release."""
        return self.preparing is not None or (self.wish is not None and not self.loaded)

    def answers(self, place: float) -> int:
        """Return the generation with which it answers the client at ``place``, 0 where nothing serves."""
        if self.trial is not None and place < self.trial[2].canary:
            return self.trial[0]
        return self.active[0] if self.active else 0

    def poll(self) -> None:
        """Send what a live replica sends: its report, or its wish to join, or its request to be admitted."""
        mail = self._world.mail
        if self.cut_off:
            return
        if self.state is not None and not self.state.outside:
            self.state, report = member.report(self.state)
            mail.append(("poll", self.name, self._with_evidence(report)))
        elif self.wish is None:
            mail.append(("join", self.name, None))
        elif self.loaded:
            mail.append(("admit", self.name, (self.wish.attempt.generation, None)))

    def _with_evidence(self, report: Report) -> Report:
        now = self._world.now
        if self.trial is not None:
            _, digest, _ = self.trial
            seen = int((now - self.trial_at) * IMAGES_A_SECOND)
            pairs = Pairs(images=seen)
            report = replace(report, evidence=Evidence(Tally(seen), self._shown(digest, seen), pairs))
        if self.active is not None and self.flipped_at:
            seen = int((now - self.flipped_at) * IMAGES_A_SECOND)
            shown = self._shown(self.active[1], seen)
            report = replace(report, watch=Evidence(shown), watch_before=Evidence(Tally(1000)))
        return report

    def _shown(self, digest: str, images: int) -> Tally:
        if digest in WORSE and "blind_judge" not in self._world.flaws:
            return Tally(images, errors=1000)
        # The shadow has looked at none of the images that it was shown last.
        return Tally(2 * images)

    def receive(self, kind: str, payload: Any) -> None:
        """Take an answer of the actor."""
        match kind:
            case "directive":
                self.tell(member.Directed(payload))
            case "joined" if self.state is None or self.state.outside:
                if isinstance(payload, Join) and self.wish is None:
                    self.wish, self.loaded = payload, False
            case "admission":
                self._admitted(*payload)

    def prepare(self) -> None:
        """Finish a load: bad weights fail, good ones fail at times."""
        work = self.preparing.attempt if self.preparing else self.wish.attempt if self.wish else None
        if work is None:
            return
        digest = work.target.digest
        bad, unlucky = digest in BAD, self._world.choose(15) == 0
        failure = Failure("golden" if bad else "load", "no good", permanent=bad) if bad or unlucky else None
        if self.preparing is not None:
            self.preparing = None
            if failure is None:
                self._fill_slot(digest)
            self.tell(member.Prepared(work) if failure is None else member.PrepareFailed(work, failure))
        elif failure is not None:
            if not self.cut_off:
                self._world.mail.append(("admit", self.name, (work.generation, failure)))
            self.wish = None
        else:
            self._fill_slot(digest)
            self._flip(digest, work.generation)
            self.loaded = True

    def ask(self) -> None:
        """Let a replica in doubt ask the ledger; the answer may get lost after the effect."""
        world = self._world
        generation, self.asking = self.asking, None
        if generation is None:
            return
        verdict: Any = "ABORT"
        if "decide_alone" not in world.flaws:
            reached = world.reachable and not self.cut_off
            verdict = world.perform(ledger.decision(MODEL, generation, "ABORT")) if reached else None
        if verdict is None or world.choose(6) == 0:
            self.tell(member.LedgerSilent(generation))
        else:
            world.events[f"doubt ended by {verdict}"] += 1
            self.tell(member.Ruled(generation, verdict))

    def confirm(self) -> None:
        """Let a replica ask the ledger whether it is counted; the answer may get lost."""
        asked, self.confirming = self.confirming, None
        if asked is None:
            return
        if self.cut_off or not self._world.reachable or self._world.choose(6) == 0:
            self.tell(member.Unconfirmed())
            return
        found = self._world.perform(ledger.membership(MODEL, self.name))
        self._world.events["struck off"] += found is None
        self.tell(member.Confirmed(asked, member=found is not None))

    def tell(self, event: member.Event) -> None:
        """Give the machine an event and carry out what it wants."""
        if self.state is None:
            return
        self.state, effects = member.step(self.state, event, self._world.now)
        for effect in effects:
            self._do(effect)

    def _do(self, effect: member.Effect) -> None:  # noqa: C901, PLR0912 - one arm an effect
        match effect:
            case member.Prepare():
                self.preparing = effect
            case member.Cancel():
                work, self.preparing = self.preparing, None
                if work is not None and work.attempt.target.digest not in BAD and self._world.choose(3) == 0:
                    self._fill_slot(work.attempt.target.digest)
                    self.tell(member.Prepared(work.attempt))
            case member.Discard(digest):
                self.candidate = None if self.candidate == digest else self.candidate
            case member.BeginTrial(attempt, step):
                self._begin_trial(attempt, step)
            case member.EndTrial():
                self.trial = self.trial if "endless_trial" in self._world.flaws else None
            case member.Hold():
                self.held = "no_hold" not in self._world.flaws and not self._holds_for_nothing()
            case member.Resume():
                self.held = False
            case member.Flip(digest, generation):
                self._flip(digest, generation)
                self.flipped_at = self._world.now
            case member.Ask(generation):
                self.asking = generation
            case member.Confirm():
                self.confirming = self._world.now
            case member.FailAll(message):
                self.failing = message is not None
                self._world.events["cut off too long" if message == member.CUT_OFF else "in doubt too long"] += (
                    self.failing
                )
            case member.Rejoin():
                self._world.events["rejoin"] += 1
                self.wish = None

    def _holds_for_nothing(self) -> bool:
        """Return whether it has the flaw that it does not hold for the first canary step."""
        if "canary_without_hold" not in self._world.flaws or self.state is None or self.state.attempt is None:
            return False
        promotion = self.state.attempt.target.promotion
        return self.state.trial == 0 and bool(self._world.orders.get(promotion, PLAIN).canary)

    def _begin_trial(self, attempt: Attempt, step: TrialStep) -> None:
        world, digest = self._world, attempt.target.digest
        if digest not in (self.previous, self.candidate):
            msg = f"I3: {self.name} tries {digest}, which it has not prepared"
            raise ViolationError(msg)
        if world.choose(15) == 0:
            self.tell(member.TrialFailed(attempt, Failure(step.mode, "no good", permanent=False)))
            return
        self.trial, self.trial_at = (attempt.generation, digest, step), world.now
        world.begun.setdefault((attempt.target, step.number), world.now)
        world.events[f"{step.mode} begun"] += 1
        self.tell(member.TrialBegun(attempt, step.number))

    def _fill_slot(self, digest: str) -> None:
        if digest in (self.active and self.active[1], self.previous):
            return
        if self.candidate not in (None, digest):
            msg = f"I6: {self.name} holds two candidates"
            raise ViolationError(msg)
        self.candidate = digest

    def _flip(self, digest: str, generation: int) -> None:
        active = self.active[1] if self.active else None
        if digest not in (active, self.previous, self.candidate):
            msg = f"I3: {self.name} flips to {digest}, which it has not prepared"
            raise ViolationError(msg)
        if digest != active:
            self.previous = active
            self.candidate = None if self.candidate == digest else self.candidate
        self.active = (generation, digest)
        self.trial = None

    def _admitted(self, verdict: str, generation: int) -> None:
        wish = self.wish
        if wish is None or not self.loaded or (self.state is not None and not self.state.outside):
            return
        if verdict == "stale":
            self.wish = None
        elif verdict == "admitted" and generation == wish.attempt.generation:
            digest = wish.attempt.target.digest
            self.wish = None
            self.flipped_at = 0.0
            self.joined = self._world.clients.next_turn()
            if self.state is None:
                strict = self._world.strict and "answers_when_cut_off" not in self._world.flaws
                isolation_s = ISOLATION_S if strict else inf
                self.state = member.MemberState(
                    self.name, generation, digest, incarnation=wish.incarnation, isolation_s=isolation_s, heard=-inf
                )
                if strict:
                    self.tell(member.Tick())
            else:
                # What says that it is admitted may be a copy of an old answer, so proves nothing.
                self.tell(member.Joined(generation, digest, -inf))
