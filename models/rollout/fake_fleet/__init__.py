"""A fleet in memory: the real state machines and ledger programs, under a scheduler that misbehaves on purpose.

``FakeFleet`` runs one rollout actor (with restarts, and at times an earlier life that still runs), up to four
replicas and a ledger. A *chooser* picks every next thing that happens: a message is delivered, late, twice or never;
one ledger operation completes; a process dies, pauses or starts; somebody promotes or rolls back; time passes.
After each of them the promises are checked against the strictest client: one who, at this very moment, gets an
answer from every replica that may start a batch. Clients that a canary may answer are followed one by one.
In strict mode hosts are cut off, too: their clients are asked like all others.
"""

from models.rollout.fake_fleet.clients import PLACES
from models.rollout.fake_fleet.fleet import FakeFleet
from models.rollout.fake_fleet.replica import FakeReplica
from models.rollout.fake_fleet.world import FLAWS, STRICT_FLAWS, ViolationError

__all__ = ["FLAWS", "PLACES", "STRICT_FLAWS", "FakeFleet", "FakeReplica", "ViolationError"]
