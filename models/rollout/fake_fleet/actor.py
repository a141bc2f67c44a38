"""One life of the rollout actor in a fake fleet: the real coordinator, its ledger programs one step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.rollout import answers, coordinator, ledger, policy, state
from models.rollout.fake_fleet.world import MODEL, WEAK, ViolationError
from models.rollout.gates import Verdict
from models.rollout.messages import Failure, Join
from models.weights.registry import Desired

if TYPE_CHECKING:
    from models.rollout.fake_fleet.world import World
    from models.rollout.messages import Target

Then = Callable[[Any], "state.Event | None"]


class FakeActor:
    """Its state, the programs that wait, and who waits for an answer of it.

    Attributes: pending is the operation of the first program that comes next; fetching, what is downloaded; judging,
    what the gates are asked about; moving, the pin to which the alias must move; polls and joiners, the replicas
    with an open call.
    """

    def __init__(self, world: World, token: str) -> None:
        """Begin a life: it claims its incarnation and recovers before it hears anybody."""
        self._world = world
        self.state = state.State(MODEL, world.timing)
        self.queue: deque[tuple[ledger.Program[Any], Then]] = deque()
        self.pending: ledger.Op | None = None
        self.fetching: Target | None = None
        self.judging: Target | None = None
        self.moving: policy.Pin | None = None
        self.polls: set[str] = set()
        self.joiners: set[str] = set()
        self.recovered = False
        self.queue.append((ledger.claim_incarnation(token), self._recover))

    def _recover(self, incarnation: int) -> None:
        self.queue.append((ledger.recover(MODEL), lambda found: self._begin(incarnation, found)))

    def _begin(self, incarnation: int, found: ledger.Recovery) -> state.Event:
        if "members_from_polls" in self._world.flaws:
            found = replace(found, members=frozenset())
        self.recovered = True
        stored = None if "forgotten_refusals" in self._world.flaws else self._world.stored_rejections
        rejections = policy.decode_rejections(stored)
        return state.Recovered(incarnation, found, pin=self._world.stored_pin, rejections=rejections)

    def work(self) -> None:
        """Perform one ledger operation of the program at the head of the queue."""
        if not self._world.reachable:
            return
        program, then = self.queue[0]
        try:
            if self.pending is None:
                self.pending = next(program)
                return
            self.pending = program.send(self._world.perform(self.pending))
        except StopIteration as stop:
            self.pending = None
            self.queue.popleft()
            event = then(stop.value)
            if event is not None:
                self.feed(event)

    def fetch(self) -> None:
        """Finish a download: mostly well, at times not."""
        target, self.fetching = self.fetching, None
        if target is not None:
            failed = state.FetchFailed(target, Failure("fetch", "store down", permanent=False))
            self.feed(failed if self._world.choose(12) == 0 else state.Fetched(target))

    def judge(self) -> None:
        """Let the gates speak; at times they cannot be asked."""
        target, self.judging = self.judging, None
        if target is None:
            return
        if self._world.choose(12) == 0:
            self.feed(state.JudgeFailed(target, Failure("quality", "registry down", permanent=False)))
            return
        passed = target.digest not in WEAK or "no_gate" in self._world.flaws
        self.feed(state.Judged(target, (Verdict("quality", passed, "0.5 against 0.6"),)))

    def read_alias(self) -> None:
        """Poll the registry, moving the alias first where a rollback asks for it."""
        world = self._world
        pin, self.moving = self.moving, None
        if pin is not None and (world.alias.promotion, world.alias.version) == pin.over:
            target = pin.target
            world.alias = Desired(MODEL, target.version, target.digest, "ready", target.promotion)
            world.events["alias moved back"] += 1
        self.feed(state.DesiredRead(world.alias if world.choose(12) else None))

    def receive(self, kind: str, name: str, payload: Any) -> None:
        """Take a message of the replica ``name``."""
        match kind:
            case "poll":
                self.polls.add(name)
                self.feed(state.Polled(payload))
            case "join":
                self.joiners.add(name)
                self._answer()
            case "admit":
                generation, failure = payload
                committed = self.state.committed
                if "admit_any_time" in self._world.flaws and committed and committed.generation == generation:
                    self._world.mail.append(("admission", name, ("admitted", generation)))
                    return
                self.feed(state.AdmitAsked(name, generation, failure))
            case "left":
                self.feed(state.MemberLeft(name))

    def feed(self, event: state.Event) -> None:
        """Give the machine an event and carry out what it wants."""
        if not self.recovered:
            return
        self.state, effects = coordinator.step(self.state, event, self._world.now)
        if "hasty_new_life" in self._world.flaws:
            self.state = replace(self.state, hold_from=0.0)
        for effect in effects:
            self._effect(effect)
        self._answer()

    def _effect(self, effect: state.Effect) -> None:  # noqa: C901, PLR0912 - one arm an effect
        world = self._world
        match effect:
            case state.Fetch(target):
                if self is world.actor and target in world.refused:
                    msg = f"{target.digest} is tried again, which was refused for good"
                    raise ViolationError(msg)
                self.fetching = target
            case state.Judge(target):
                self.judging = target
            case state.Claim(attempt):
                self.queue.append((ledger.claim(MODEL, attempt), lambda won: state.Claimed(attempt, won)))
            case state.Decide(generation, verdict):
                if verdict == "ABORT":
                    # Nothing but the actor of this generation ever puts COMMIT, so this is its end.
                    world.clients.ended.add(generation)
                program = _single(ledger.decision(MODEL, generation, verdict))
                self.queue.append((program, lambda stands: state.Decided(generation, stands)))
            case state.RecordMember(name):
                recording = ledger.record_member(MODEL, name, self.state.incarnation)
                self.queue.append((recording, lambda ok: state.MemberRecorded(name, in_charge=ok)))
            case state.ForgetMember(name):
                forgetting = ledger.forget_member(MODEL, name)
                self.queue.append((forgetting, lambda _: state.MemberForgotten(name)))
            case state.Admit(name, verdict):
                committed = self.state.committed
                world.mail.append(("admission", name, (verdict, committed.generation if committed else 0)))
            case state.Announce(attempt):
                world.events["commit"] += 1
                world.events["commit without one that is cut off"] += any(r.cut_off for r in world.replicas.values())
                self.queue.append((ledger.sweep(MODEL, attempt.generation), lambda _: None))
            case state.Audit(target, result, failure):
                world.events[f"{result} in {failure.step}"] += 1
                if failure.permanent and self.state.committed is not None:
                    self._refused(target)
            case state.Note(_, result):
                world.events[result] += 1
            case state.SavePin(pin):
                world.stored_pin = pin
            case state.MoveAlias(pin):
                self.moving = pin
            case state.Depose():
                world.events["deposed"] += 1
                if self is world.earlier:
                    world.earlier = None

    def _refused(self, target: Target) -> None:
        world = self._world
        world.stored_rejections = policy.encode_rejections(self.state.rejections)
        if self is world.actor:
            world.refused.add(target)

    def _answer(self) -> None:
        """Answer every open poll and every starting replica that there is something to say to."""
        world = self._world
        for name in sorted(self.polls):
            directive = answers.directive_for(self.state, name, world.now)
            if directive is not None:
                self.polls.discard(name)
                if directive.attempt is not None and directive.step is not None and directive.step.canary:
                    world.clients.canaries.setdefault(directive.attempt.generation, world.clients.next_turn())
                world.mail.append(("directive", name, directive))
        found = answers.join_answer(self.state, world.now) if self.joiners else None
        if found is not None:
            names = sorted(self.joiners)
            self.joiners.clear()
            world.mail += [("joined", name, found) for name in names]
            if isinstance(found, Join) and not found.decided:
                for name in names:
                    self.feed(state.TryTold(name, found.attempt.generation))


def _single(op: ledger.Op) -> ledger.Program[Any]:
    return (yield op)
