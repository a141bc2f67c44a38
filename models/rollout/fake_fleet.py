"""A fleet in memory: the real state machines and ledger programs, under a scheduler that misbehaves on purpose.

``FakeFleet`` runs one rollout actor (with restarts, and at times an earlier life that still runs), up to four
replicas and a ledger. A *chooser* picks every next thing that happens: a message is delivered, late, twice or never;
one ledger operation completes; a process dies, pauses or starts; somebody promotes or rolls back; time passes.
After each of them the promises are checked against the strictest client: one who, at this very moment, gets an
answer from every replica that may start a batch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from models.rollout import answers, coordinator, ledger, member, policy, state
from models.rollout.messages import Failure, Join, Target
from models.weights.registry import Desired

MODEL = "m"
FLAWS = ("no_hold", "decide_alone", "no_death_margin", "members_from_polls", "admit_any_time", "no_fence")
"""Rules of the protocol that a fleet can be told to break, to prove that the checks would notice."""
FIRST_GOOD = Target("1", "d1", "p1")
BAD = frozenset({"d3", "d6"})
"""Digests that fail when a replica prepares them."""

MOST_REPLICAS = 4

T = TypeVar("T")
Chooser = Callable[[int], int]
"""Return a number from 0 up to, and without, its argument."""


Then = Callable[[Any], "state.Event | None"]


class ViolationError(AssertionError):
    """The protocol broke a promise."""


@dataclass
class FakeActor:
    """One life of the rollout actor: its state, and the ledger programs it runs one after another."""

    token: str
    state: state.State
    queue: deque[tuple[ledger.Program[Any], Then]] = field(default_factory=deque)
    pending: ledger.Op | None = None
    fetching: Target | None = None
    moving: policy.Pin | None = None
    polls: set[str] = field(default_factory=set)
    joiners: set[str] = field(default_factory=set)
    recovered: bool = False


@dataclass
class FakeReplica:
    """One replica: its member machine, and an engine with three slots."""

    name: str
    state: member.MemberState | None = None
    wish: Join | None = None
    loaded: bool = False
    active: tuple[int, str] | None = None
    previous: str | None = None
    candidate: str | None = None
    preparing: member.Prepare | None = None
    asking: int | None = None
    held: bool = False
    failing: bool = False
    paused: bool = False
    listed: bool = True
    gone_at: float | None = None

    @property
    def may_start(self) -> bool:
        """Return whether a batch could start on this replica at this moment."""
        return self.state is not None and not (self.held or self.failing or self.paused)


class FakeFleet:
    """The world. ``events`` counts what happened, so that a test can prove that its runs reached the rare cases."""

    def __init__(self, choose: Chooser, *, flaws: frozenset[str] = frozenset(), replicas: int = 2) -> None:
        """Start with version 1 promoted and ``replicas`` (1 to 4) starting."""
        self.choose, self.flaws = choose, flaws
        self.faults = (0, 1, 3, 8)[choose(4)]
        self.now = 0.0
        self.events: Counter[str] = Counter()
        self.data: dict[str, str] = {}
        self.reachable = True
        self.commits: dict[int, str] = {}
        self.observed = 0
        self.mail: list[tuple[str, str, Any]] = []
        self.alias = Desired(MODEL, FIRST_GOOD.version, FIRST_GOOD.digest, "ready", FIRST_GOOD.promotion)
        self.stored_pin: policy.Pin | None = None
        self.lives = self.started = self.promotions = 0
        margin = 0.0 if "no_death_margin" in flaws else 1.0
        self.timing = state.Timing(prepare_timeout_s=20.0, death_margin_s=margin)
        self.actor: FakeActor | None = None
        self.earlier: FakeActor | None = None
        self.replicas: dict[str, FakeReplica] = {}
        self.start_actor()
        for _ in range(replicas):
            self.start_replica()

    # What may happen next

    def step(self) -> None:
        """Let one thing happen, then check the promises."""
        options = self._options()
        total = sum(weight for weight, _ in options)
        pick = self.choose(total)
        for weight, action in options:
            pick -= weight
            if pick < 0:
                action()
                break
        self.check()

    def _options(self) -> list[tuple[int, Callable[[], None]]]:
        actors = [actor for actor in (self.actor, self.earlier) if actor is not None]
        running = [r for r in self.replicas.values() if not r.paused]
        busy = [r for r in running if r.preparing or (r.wish and not r.loaded)]
        asking = [r for r in running if r.asking is not None]
        working = [a for a in actors if a.queue]
        fetching = [a for a in actors if a.fetching]
        everybody = list(self.replicas.values())
        faults = self.faults
        options: list[tuple[int, Callable[[], None]]] = [
            (40, self.pass_time),
            (300 if self.mail else 0, lambda: self.deliver(self.choose(len(self.mail)))),
            (200 if working else 0, lambda: self.work(self._some(working))),
            (80 if fetching else 0, lambda: self.fetch(self._some(fetching))),
            (20 if actors else 0, lambda: self.read_alias(self._some(actors))),
            (90 if running else 0, lambda: self.poll(self._some(running))),
            (90 if busy else 0, lambda: self.prepare(self._some(busy))),
            (90 if asking else 0, lambda: self.ask(self._some(asking))),
            (20, self.prove_deaths),
            (0 if self.actor else 60, self.start_actor),
            (0 if self.reachable else 12, self.toggle_ledger),
            (5 if len(everybody) < MOST_REPLICAS else 0, self.start_replica),
            (5, self.promote),
            (2, self.rollback),
            (
                20 * len([r for r in everybody if r.paused]),
                lambda: self.pause(self._some([r for r in everybody if r.paused])),
            ),
            (4 * faults if self.mail else 0, self.drop),
            (4 * faults if self.mail else 0, self.duplicate),
            (2 * faults if self.actor else 0, self.crash_actor),
            (faults if self.actor and not self.earlier else 0, self.split),
            (3 if self.earlier else 0, self.end_earlier),
            (faults if self.reachable else 0, self.toggle_ledger),
            (2 * faults if running else 0, lambda: self.pause(self._some(running))),
            (faults if everybody else 0, lambda: self.kill(self._some(everybody))),
        ]
        return [option for option in options if option[0]]

    def _some(self, of: list[T]) -> T:
        return of[self.choose(len(of))]

    # Time and messages

    def pass_time(self) -> None:
        """Let a short or a long time pass."""
        self.advance((0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.9)[self.choose(7)])

    def advance(self, seconds: float) -> None:
        """Let time pass and every timer that is due fire."""
        self.now += seconds
        for name, replica in list(self.replicas.items()):
            if replica.gone_at is not None and self.now >= replica.gone_at:
                del self.replicas[name]
        for replica in list(self.replicas.values()):
            if not replica.paused:
                self.tell(replica, member.Tick())
        for actor in (self.actor, self.earlier):
            if actor is not None:
                self.feed(actor, state.Tick())

    def drop(self) -> None:
        """Lose a message."""
        self.mail.pop(self.choose(len(self.mail)))
        self.events["lost"] += 1

    def duplicate(self) -> None:
        """Deliver a message once more, some time."""
        self.mail.append(self.mail[self.choose(len(self.mail))])

    def deliver(self, index: int) -> None:
        """Bring one message to its receiver, whatever was sent before it."""
        kind, name, payload = self.mail[index]
        replica = self.replicas.get(name)
        if kind in ("poll", "join", "admit", "left"):
            self.mail.pop(index)
            # After a split either life may get the message.
            actor = self.earlier if self.earlier and self.choose(3) == 0 else self.actor
            if actor is not None and actor.recovered:
                self._receive(actor, kind, name, payload)
        elif replica is None or not replica.paused:
            self.mail.pop(index)
            if replica is not None:
                self._answered(replica, kind, payload)

    def _receive(self, actor: FakeActor, kind: str, name: str, payload: Any) -> None:
        match kind:
            case "poll":
                actor.polls.add(name)
                self.feed(actor, state.Polled(payload))
            case "join":
                actor.joiners.add(name)
                self.answer(actor)
            case "admit":
                generation, failure = payload
                committed = actor.state.committed
                if "admit_any_time" in self.flaws and committed and committed.generation == generation:
                    self.mail.append(("admission", name, ("admitted", generation)))
                    return
                self.feed(actor, state.AdmitAsked(name, generation, failure))
            case "left":
                self.feed(actor, state.MemberLeft(name))

    def _answered(self, replica: FakeReplica, kind: str, payload: Any) -> None:
        match kind:
            case "directive":
                self.tell(replica, member.Directed(payload))
            case "joined" if replica.state is None or replica.state.outside:
                if isinstance(payload, Join) and replica.wish is None:
                    replica.wish, replica.loaded = payload, False
            case "admission":
                self._admitted(replica, *payload)

    # The actor

    def start_actor(self) -> None:
        """Begin a new life of the actor."""
        self.lives += 1
        actor = FakeActor(f"life{self.lives}", state.State(MODEL, self.timing))
        self.actor = actor

        def recover(incarnation: int) -> None:
            actor.queue.append((ledger.recover(MODEL), lambda found: self._recovered(actor, incarnation, found)))

        actor.queue.append((ledger.claim_incarnation(actor.token), recover))

    def _recovered(self, actor: FakeActor, incarnation: int, found: ledger.Recovery) -> state.Event:
        if "members_from_polls" in self.flaws:
            found = replace(found, members=frozenset())
        actor.recovered = True
        return state.Recovered(incarnation, found, pin=self.stored_pin)

    def crash_actor(self) -> None:
        """End the actor between any two of its effects."""
        if self.actor is not None and self.actor.state.phase != "boot":
            phase = self.actor.state.phase
            behind = any(r.active and r.active[0] < max(self.commits, default=0) for r in self.replicas.values())
            self.events[f"crash in {phase}"] += 1
            self.events["crash between COMMIT and GO"] += behind
        self.actor = None

    def split(self) -> None:
        """Begin a new life while the old one still runs, as after a partition."""
        self.earlier = self.actor
        self.events["split"] += 1
        self.start_actor()

    def end_earlier(self) -> None:
        """End the old life."""
        self.earlier = None

    def work(self, actor: FakeActor) -> None:
        """Perform one ledger operation of the program at the head of the actor's queue."""
        if not self.reachable:
            return
        program, then = actor.queue[0]
        try:
            if actor.pending is None:
                actor.pending = next(program)
                return
            actor.pending = program.send(self.perform(actor.pending))
        except StopIteration as stop:
            actor.pending = None
            actor.queue.popleft()
            event = then(stop.value)
            if event is not None:
                self.feed(actor, event)

    def perform(self, op: ledger.Op) -> ledger.Result:
        """Apply one operation to the ledger and remember commits for the checks."""
        match op:
            case ledger.Put(key, value):
                standing = self.data.setdefault(key, value)
                if standing == value == "COMMIT" and key.startswith(f"{MODEL}/decision/"):
                    generation = int(key.rpartition("/")[2])
                    claimed = self.data.get(f"{MODEL}/claim/{generation}")
                    if claimed is None:
                        msg = f"I4: generation {generation} is committed and nobody knows what it is"
                        raise ViolationError(msg)
                    attempt = ledger.decode(claimed)
                    self.commits[generation] = attempt.target.digest
                    if attempt.target.digest in BAD:
                        msg = f"I3: generation {generation} commits {attempt.target.digest}, which fails"
                        raise ViolationError(msg)
                return standing
            case ledger.Get(key):
                return None if "no_fence" in self.flaws and key.startswith("incarnation/") else self.data.get(key)
            case ledger.Keys(prefix):
                return [key for key in self.data if key.startswith(prefix)]
            case ledger.Delete(key):
                self.data.pop(key, None)
        return None

    def feed(self, actor: FakeActor, event: state.Event) -> None:
        """Give the actor's machine an event and carry out what it wants."""
        if not actor.recovered:
            return
        actor.state, effects = coordinator.step(actor.state, event, self.now)
        for effect in effects:
            self._effect(actor, effect)
        self.answer(actor)

    def _effect(self, actor: FakeActor, effect: state.Effect) -> None:  # noqa: C901 - one arm an effect
        match effect:
            case state.Fetch(target):
                actor.fetching = target
            case state.Claim(attempt):
                actor.queue.append((ledger.claim(MODEL, attempt), lambda won: state.Claimed(attempt, won)))
            case state.Decide(generation, verdict):
                actor.queue.append(
                    (_single(ledger.decision(MODEL, generation, verdict)), lambda v: state.Decided(generation, v))
                )
            case state.RecordMember(name):
                program = ledger.record_member(MODEL, name, actor.state.incarnation)
                actor.queue.append((program, lambda ok: state.MemberRecorded(name, in_charge=ok)))
            case state.ForgetMember(name):
                actor.queue.append((ledger.forget_member(MODEL, name), lambda _: None))
            case state.Admit(name, verdict):
                committed = actor.state.committed
                self.mail.append(("admission", name, (verdict, committed.generation if committed else 0)))
            case state.Announce(attempt):
                self.events["commit"] += 1
                actor.queue.append((ledger.sweep(MODEL, attempt.generation), lambda _: None))
            case state.Audit(_, result, failure):
                self.events[f"{result} in {failure.step}"] += 1
            case state.SavePin(pin):
                self.stored_pin = pin
            case state.MoveAlias(pin):
                actor.moving = pin
            case state.Depose():
                self.events["deposed"] += 1
                if actor is self.earlier:
                    self.earlier = None

    def answer(self, actor: FakeActor) -> None:
        """Answer every open poll and every starting replica that there is something to say to."""
        for name in sorted(actor.polls):
            directive = answers.directive_for(actor.state, name, self.now)
            if directive is not None:
                actor.polls.discard(name)
                self.mail.append(("directive", name, directive))
        found = answers.join_answer(actor.state, self.now) if actor.joiners else None
        if found is not None:
            names = sorted(actor.joiners)
            actor.joiners.clear()
            self.mail += [("joined", name, found) for name in names]
            if isinstance(found, Join) and not found.decided:
                for name in names:
                    self.feed(actor, state.TryTold(name, found.attempt.generation))

    def fetch(self, actor: FakeActor) -> None:
        """Finish a download: mostly well, at times not."""
        target, actor.fetching = actor.fetching, None
        if target is not None:
            failed = state.FetchFailed(target, Failure("fetch", "store down", permanent=False))
            self.feed(actor, failed if self.choose(12) == 0 else state.Fetched(target))

    def read_alias(self, actor: FakeActor) -> None:
        """Poll the registry, moving the alias first where a rollback asks for it."""
        pin, actor.moving = actor.moving, None
        if pin is not None and (self.alias.promotion, self.alias.version) == pin.over:
            target = pin.target
            self.alias = Desired(MODEL, target.version, target.digest, "ready", target.promotion)
        self.feed(actor, state.DesiredRead(self.alias if self.choose(12) else None))

    def prove_deaths(self) -> None:
        """Look every member up by name."""
        for actor in (self.actor, self.earlier):
            for name in [*actor.state.members, *actor.state.trying] if actor else ():
                if name not in self.replicas or not self.replicas[name].listed:
                    self.feed(actor, state.MemberDied(name))  # type: ignore[arg-type]

    # People and faults

    def promote(self, version: int | None = None) -> None:
        """Point the alias at some version."""
        self.promotions += 1
        chosen = 1 + self.choose(6) if version is None else version
        self.alias = Desired(MODEL, str(chosen), f"d{chosen}", "ready", f"q{self.promotions}")

    def rollback(self) -> None:
        """Ask the actor for the version before."""
        self.promotions += 1
        if self.actor is not None:
            self.feed(self.actor, state.RollbackAsked(f"q{self.promotions}"))

    def toggle_ledger(self) -> None:
        """Cut the ledger off, or let it come back, for everybody."""
        self.reachable = not self.reachable

    def start_replica(self) -> None:
        """Start one more replica; it has nothing loaded."""
        self.started += 1
        self.replicas[f"r{self.started}"] = FakeReplica(f"r{self.started}")

    def pause(self, replica: FakeReplica) -> None:
        """Stop the process, or let it run on."""
        replica.paused = not replica.paused

    def kill(self, replica: FakeReplica) -> None:
        """Kill the process: its name goes at once, the process itself within the death margin; or stop it in order."""
        if self.choose(3) == 0 and not replica.paused:
            del self.replicas[replica.name]
            self.mail.append(("left", replica.name, None))
            return
        replica.listed = False
        if replica.gone_at is None:
            replica.gone_at = self.now + (0.0, 0.4, 0.9)[self.choose(3)]

    # The replicas

    def poll(self, replica: FakeReplica) -> None:
        """Send what a live replica sends: its report, or its wish to join, or its request to be admitted."""
        if replica.state is not None and not replica.state.outside:
            replica.state, report = member.report(replica.state)
            self.mail.append(("poll", replica.name, report))
        elif replica.wish is None:
            self.mail.append(("join", replica.name, None))
        elif replica.loaded:
            self.mail.append(("admit", replica.name, (replica.wish.attempt.generation, None)))

    def prepare(self, replica: FakeReplica) -> None:
        """Finish a load: bad weights fail, good ones fail at times."""
        work = replica.preparing.attempt if replica.preparing else replica.wish.attempt if replica.wish else None
        if work is None:
            return
        digest = work.target.digest
        bad, unlucky = digest in BAD, self.choose(15) == 0
        failure = Failure("golden" if bad else "load", "no good", permanent=bad) if bad or unlucky else None
        if replica.preparing is not None:
            replica.preparing = None
            self._slot(replica, digest, failure)
            self.tell(replica, member.Prepared(work) if failure is None else member.PrepareFailed(work, failure))
        elif failure is not None:
            self.mail.append(("admit", replica.name, (work.generation, failure)))
            replica.wish = None
        else:
            self._slot(replica, digest, None)
            self._flip(replica, digest, work.generation)
            replica.loaded = True

    def _slot(self, replica: FakeReplica, digest: str, failure: Failure | None) -> None:
        if failure is None and digest not in (replica.active and replica.active[1], replica.previous):
            if replica.candidate not in (None, digest):
                msg = f"I6: {replica.name} holds two candidates"
                raise ViolationError(msg)
            replica.candidate = digest

    def ask(self, replica: FakeReplica) -> None:
        """Let a replica in doubt ask the ledger; the answer may get lost after the effect."""
        generation, replica.asking = replica.asking, None
        if generation is None:
            return
        verdict: Any = "ABORT"
        if "decide_alone" not in self.flaws:
            verdict = self.perform(ledger.decision(MODEL, generation, "ABORT")) if self.reachable else None
        if verdict is None or self.choose(6) == 0:
            self.tell(replica, member.LedgerSilent(generation))
        else:
            self.events[f"doubt ended by {verdict}"] += 1
            self.tell(replica, member.Ruled(generation, verdict))

    def tell(self, replica: FakeReplica, event: member.Event) -> None:
        """Give a replica's machine an event and carry out what it wants."""
        if replica.state is None:
            return
        replica.state, effects = member.step(replica.state, event, self.now)
        for effect in effects:
            self._do(replica, effect)

    def _do(self, replica: FakeReplica, effect: member.Effect) -> None:  # noqa: C901 - one arm an effect
        match effect:
            case member.Prepare():
                replica.preparing = effect
            case member.Cancel():
                work, replica.preparing = replica.preparing, None
                if work is not None and work.attempt.target.digest not in BAD and self.choose(3) == 0:
                    self._slot(replica, work.attempt.target.digest, None)
                    self.tell(replica, member.Prepared(work.attempt))
            case member.Discard(digest):
                replica.candidate = None if replica.candidate == digest else replica.candidate
            case member.Hold():
                replica.held = "no_hold" not in self.flaws
            case member.Resume():
                replica.held = False
            case member.Flip(digest, generation):
                self._flip(replica, digest, generation)
            case member.Ask(generation):
                replica.asking = generation
            case member.FailAll(message):
                replica.failing = message is not None
                self.events["in doubt too long"] += replica.failing
            case member.Rejoin():
                self.events["rejoin"] += 1
                replica.wish = None

    def _flip(self, replica: FakeReplica, digest: str, generation: int) -> None:
        active = replica.active[1] if replica.active else None
        if digest not in (active, replica.previous, replica.candidate):
            msg = f"I3: {replica.name} flips to {digest}, which it has not prepared"
            raise ViolationError(msg)
        if digest != active:
            replica.previous = active
            replica.candidate = None if replica.candidate == digest else replica.candidate
        replica.active = (generation, digest)

    def _admitted(self, replica: FakeReplica, verdict: str, generation: int) -> None:
        wish = replica.wish
        if wish is None or not replica.loaded or (replica.state is not None and not replica.state.outside):
            return
        if verdict == "stale":
            replica.wish = None
        elif verdict == "admitted" and generation == wish.attempt.generation:
            digest = wish.attempt.target.digest
            replica.wish = None
            if replica.state is None:
                replica.state = member.MemberState(replica.name, generation, digest, incarnation=wish.incarnation)
            else:
                self.tell(replica, member.Joined(generation, digest))

    # The promises

    def check(self) -> None:
        """Raise ViolationError where a promise is broken at this moment."""
        for replica in self.replicas.values():
            inside = replica.state is not None and not replica.state.outside
            if inside and replica.active != (replica.state.generation, replica.state.digest):  # type: ignore[union-attr]
                msg = f"{replica.name}: machine and engine disagree"
                raise ViolationError(msg)
        starters = [r for r in self.replicas.values() if r.may_start and r.active is not None]
        for replica in starters:
            generation, digest = replica.active  # type: ignore[misc]
            if digest in BAD:
                msg = f"I3: {replica.name} serves {digest}, which failed"
                raise ViolationError(msg)
            if self.commits.get(generation) != digest:
                msg = f"I2: {replica.name} serves {digest} as {generation}, which was never committed"
                raise ViolationError(msg)
            self.observed = max(self.observed, generation)
        late = [r for r in starters if r.active is not None and r.active[0] < self.observed]
        if late:
            msg = f"I7: {late[0].name} starts a batch on {late[0].active} after {self.observed} was seen"
            raise ViolationError(msg)

    def settle(self, rounds: int = 1500) -> bool:
        """End all faults, then let everything happen in a fair order; return whether the fleet converged (I5)."""
        self.reachable, self.earlier = True, None
        self.choose = lambda n: n - 1
        if self.actor is None:
            self.start_actor()
        if not any(r.gone_at is None for r in self.replicas.values()):
            self.start_replica()
        for replica in self.replicas.values():
            replica.paused = False
        for _ in range(rounds):
            self._fair_round()
            if self.converged():
                return True
        return False

    def step_bootstrap(self) -> None:
        """Let all messages and ledger programs through, with no replica ending its load."""
        if self.actor is not None:
            self.read_alias(self.actor)
        self._drain()
        for replica in self.replicas.values():
            self.poll(replica)
        self._drain()

    def go_on(self, rounds: int, *, silent: FakeReplica | None = None) -> None:
        """Let everything happen in a fair order, 0.05 s a round, but for a replica that sends nothing."""
        for _ in range(rounds):
            self._fair_round(silent)

    def _fair_round(self, silent: FakeReplica | None = None) -> None:
        actor = self.actor
        if actor is None or actor.state.phase == "deposed":
            self.start_actor()
            return
        self.read_alias(actor)
        self.prove_deaths()
        self._drain()
        self._replicas_work(silent)
        self.advance(0.05)
        self.check()

    def _drain(self) -> None:
        for _ in range(200):
            if self.actor is not None and self.actor.fetching:
                self.fetch(self.actor)
            elif self.actor is not None and self.actor.queue:
                self.work(self.actor)
            elif self.mail:
                self.deliver(0)
            else:
                return
            self.check()

    def _replicas_work(self, silent: FakeReplica | None) -> None:
        for replica in [each for each in self.replicas.values() if each is not silent]:
            if replica.preparing or (replica.wish and not replica.loaded):
                self.prepare(replica)
            if replica.asking is not None:
                self.ask(replica)
            self.poll(replica)
            self.check()

    def converged(self) -> bool:
        """Return whether every live replica serves what is desired, or the last good where that was refused."""
        actor = self.actor
        if actor is None:
            return False
        action = coordinator.choose(actor.state, self.now)
        refused = isinstance(action, policy.Refuse) and action.failure.permanent
        if actor.state.phase != "idle" or actor.state.committed is None:
            # With nothing ever committed and only bad or deadly versions desired, refusing is all there is to do.
            deadly = refused and actor.state.deaths >= self.timing.max_deaths
            bad = self.alias.digest in BAD and bool(actor.state.rejections)
            return (bad or deadly) and not self.commits
        committed = actor.state.committed
        live = [r for r in self.replicas.values() if r.gone_at is None]
        same = all(r.may_start and r.active == (committed.generation, committed.target.digest) for r in live)
        wanted = actor.state.pin.target.digest if actor.state.pin else self.alias.digest
        unlucky = refused and actor.state.deaths >= self.timing.max_deaths
        return same and (refused if wanted in BAD else committed.target.digest == wanted or unlucky)


def _single(op: ledger.Op) -> ledger.Program[Any]:
    return (yield op)
