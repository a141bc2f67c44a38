"""Everything that may happen to a fake fleet, one thing after another, and how it comes to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from models.rollout import member, state
from models.rollout.fake_fleet.actor import FakeActor
from models.rollout.fake_fleet.promises import check, check_way_back, converged, note_rollback
from models.rollout.fake_fleet.replica import FakeReplica
from models.rollout.fake_fleet.world import MODEL, World
from models.rollout.order import PLAIN, Order
from models.weights.registry import Desired

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.rollout.fake_fleet.world import Chooser

MOST_REPLICAS = 4
ORDERS = (
    Order(shadow_s=0.4, canary=(0.1, 0.5), step_s=0.3),
    Order(canary=(0.4,), step_s=0.5),
    Order(shadow_s=0.5),
    PLAIN,
    PLAIN,
    PLAIN,
)

T = TypeVar("T")


class FakeFleet(World):
    """A world with an actor and replicas in it. ``faults`` (0 to 8) is how often things go wrong."""

    def __init__(
        self, choose: Chooser, *, flaws: frozenset[str] = frozenset(), replicas: int = 2, strict: bool = False
    ) -> None:
        """Start with version 1 promoted and ``replicas`` (1 to 4) starting."""
        super().__init__(choose, flaws, strict=strict)
        self.faults = (0, 1, 3, 8)[choose(4)]
        self.lives = self.started = self.promotions = 0
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
        check(self)

    def _options(self) -> list[tuple[int, Callable[[], None]]]:
        actors = [actor for actor in (self.actor, self.earlier) if actor is not None]
        running = [r for r in self.replicas.values() if not r.paused]
        busy = [r for r in running if r.busy]
        asking = [r for r in running if r.asking is not None]
        working = [a for a in actors if a.queue]
        fetching = [a for a in actors if a.fetching]
        judging = [a for a in actors if a.judging]
        everybody = list(self.replicas.values())
        faults = self.faults
        options: list[tuple[int, Callable[[], None]]] = [
            (40, self.pass_time),
            (300 if self.mail else 0, lambda: self.deliver(self.choose(len(self.mail)))),
            (200 if working else 0, lambda: self._some(working).work()),
            (80 if fetching else 0, lambda: self._some(fetching).fetch()),
            (80 if judging else 0, lambda: self._some(judging).judge()),
            (20 if actors else 0, lambda: self._some(actors).read_alias()),
            (90 if running else 0, lambda: self._some(running).poll()),
            (90 if busy else 0, lambda: self._some(busy).prepare()),
            (90 if asking else 0, lambda: self._some(asking).ask()),
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
            *(self._strict_options() if self.strict else ()),
        ]
        return [option for option in options if option[0]]

    def _strict_options(self) -> list[tuple[int, Callable[[], None]]]:
        joined = [r for r in self.replicas.values() if not r.cut_off and r.gone_at is None]
        alone = [r for r in self.replicas.values() if r.cut_off]
        unproven = [r for r in alone if r.listed]
        confirming = [r for r in self.replicas.values() if r.confirming is not None and not r.paused]
        return [
            (90 if confirming else 0, lambda: self._some(confirming).confirm()),
            (self.faults if joined and not alone else 0, lambda: self.cut_off(self._some(joined))),
            (15 if unproven else 0, lambda: self.count_dead(self._some(unproven))),
            # Long enough for the others to go on.
            (1 if alone else 0, lambda: self.join_again(self._some(alone))),
        ]

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
                replica.tell(member.Tick())
        for actor in (self.actor, self.earlier):
            if actor is not None:
                actor.feed(state.Tick())

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
                actor.receive(kind, name, payload)
        elif replica is None or not replica.paused:
            self.mail.pop(index)
            if replica is not None and not replica.cut_off:
                replica.receive(kind, payload)

    # The actor

    def start_actor(self) -> None:
        """Begin a new life of the actor."""
        self.lives += 1
        self.actor = FakeActor(self, f"life{self.lives}")

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

    def prove_deaths(self) -> None:
        """Look every member up by name."""
        for actor in (self.actor, self.earlier):
            if actor is None:
                continue
            for name in [*actor.state.members, *actor.state.trying]:
                if name not in self.replicas or not self.replicas[name].listed:
                    actor.feed(state.MemberDied(name))

    # People and faults

    def promote(self, version: int | None = None, order: Order = PLAIN) -> None:
        """Point the alias at some version; one that is not named comes with some order."""
        self.promotions += 1
        chosen = 1 + self.choose(6) if version is None else version
        order = ORDERS[self.choose(len(ORDERS))] if version is None else order
        promotion = f"q{self.promotions}"
        self.orders[promotion] = order
        self.alias = Desired(MODEL, str(chosen), f"d{chosen}", "ready", promotion, order)

    def rollback(self) -> None:
        """Ask the actor to take back what was promoted last."""
        self.promotions += 1
        if self.actor is None or not self.actor.recovered:
            return
        before = self.actor.state
        note_rollback(self, before)
        if "deaf_to_rollbacks" not in self.flaws:
            self.actor.feed(state.RollbackAsked(f"q{self.promotions}"))
            check_way_back(before, self.actor.state)

    def toggle_ledger(self) -> None:
        """Cut the ledger off, or let it come back, for everybody."""
        self.reachable = not self.reachable

    def start_replica(self) -> None:
        """Start one more replica; it has nothing loaded."""
        self.started += 1
        self.replicas[f"r{self.started}"] = FakeReplica(f"r{self.started}", self)

    def pause(self, replica: FakeReplica) -> None:
        """Stop the process, or let it run on."""
        replica.paused = not replica.paused
        if self.strict and not replica.paused:
            # A timer that is overdue comes first.
            replica.tell(member.Tick())

    def kill(self, replica: FakeReplica) -> None:
        """Kill the process: its name goes at once, the process itself within the death margin; or stop it in order."""
        if self.choose(3) == 0 and not replica.paused and not replica.cut_off:
            del self.replicas[replica.name]
            self.mail.append(("left", replica.name, None))
            return
        replica.listed = False
        if replica.gone_at is None:
            replica.gone_at = self.now + (0.0, 0.4, 0.9)[self.choose(3)]

    def cut_off(self, replica: FakeReplica) -> None:
        """Cut its host off: it hears nobody and nobody hears it, but its clients still reach it."""
        replica.cut_off = True
        self.events["cut off"] += 1

    def count_dead(self, replica: FakeReplica) -> None:
        """Let the cluster count the host that is cut off as dead, with all that runs there."""
        replica.listed = False
        self.events["counted dead"] += 1

    def join_again(self, replica: FakeReplica) -> None:
        """Join its host again; a process that was counted dead is ended some time after."""
        replica.cut_off = False
        if not replica.listed and replica.gone_at is None:
            replica.gone_at = self.now + (0.4, 0.9, 4.0)[self.choose(3)]

    # The way to rest

    def settle(self, rounds: int = 1500) -> bool:
        """End all faults, then let everything happen in a fair order; return whether the fleet converged (I5)."""
        self.reachable, self.earlier = True, None
        self.choose = lambda n: n - 1
        if self.actor is None:
            self.start_actor()
        for replica in self.replicas.values():
            replica.paused = False
            if replica.cut_off:
                self.join_again(replica)
        if not any(r.gone_at is None for r in self.replicas.values()):
            self.start_replica()
        for _ in range(rounds):
            self._fair_round()
            if converged(self):
                return True
        return False

    def step_bootstrap(self) -> None:
        """Let all messages and ledger programs through, with no replica ending its load."""
        if self.actor is not None:
            self.actor.read_alias()
        self._drain()
        for replica in self.replicas.values():
            replica.poll()
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
        actor.read_alias()
        self.prove_deaths()
        self._drain()
        self._replicas_work(silent)
        self.advance(0.05)
        check(self)

    def step_in_turn(self) -> None:
        """Let one thing happen, in a fair order: what is under way first, else everybody polls and time passes."""
        if not self._one_thing() and self.actor is not None:
            self.actor.read_alias()
            self._replicas_work(None)
            self.advance(0.05)
        check(self)

    def _drain(self) -> None:
        for _ in range(200):
            if not self._one_thing():
                return
            check(self)

    def _one_thing(self) -> bool:
        if self.actor is not None and self.actor.fetching:
            self.actor.fetch()
        elif self.actor is not None and self.actor.judging:
            self.actor.judge()
        elif self.actor is not None and self.actor.queue:
            self.actor.work()
        elif self.mail:
            self.deliver(0)
        else:
            return False
        return True

    def _replicas_work(self, silent: FakeReplica | None) -> None:
        for replica in [each for each in self.replicas.values() if each is not silent]:
            if replica.busy:
                replica.prepare()
            if replica.asking is not None:
                replica.ask()
            if replica.confirming is not None:
                replica.confirm()
            replica.poll()
            check(self)

    def converged(self) -> bool:
        """Return whether the fleet has come to rest where it should; see ``promises.converged``."""
        return converged(self)
