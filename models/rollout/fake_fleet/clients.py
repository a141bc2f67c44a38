"""Clients in a fake fleet whom a candidate may answer: each is followed by its id, as the engine does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from models.rollout.fake_fleet.replica import FakeReplica

PLACES: Final = (0.05, 0.3, 0.9)
"""Where the clients fall in [0, 1): a canary answers those below its share."""


class Clients:
    """What each client has seen.

    Attributes: ended, the generations given up: whoever had seen one goes back. turn counts what happens; canaries
    holds the turn at which a replica was first told that a generation may answer clients before its commit.
    """

    def __init__(self) -> None:
        """Nobody has seen anything."""
        self.ended: set[int] = set()
        self.turn = 0
        self.canaries: dict[int, int] = {}
        self._seen: dict[float, set[int]] = {place: set() for place in PLACES}

    def next_turn(self) -> int:
        """Count one more thing that happens."""
        self.turn += 1
        return self.turn

    def ask(self, replicas: Collection[FakeReplica]) -> str | None:
        """Let every client ask every replica that may start a batch; return how a promise is broken, None if kept."""
        for place, seen in self._seen.items():
            offers = [(replica, replica.answers(place)) for replica in replicas if replica.may_start and replica.active]
            seen.update(generation for _, generation in offers)
            floor = max((generation for generation in seen if generation not in self.ended), default=0)
            for replica, generation in offers:
                if generation < floor and not self._excused(replica, floor):
                    return f"I7: {replica.name} answers the client at {place} with {generation} after it saw {floor}"
        return None

    def _excused(self, replica: FakeReplica, generation: int) -> bool:
        """Return whether the replica joined after the canary of ``generation`` had begun and does not run it yet."""
        begun = self.canaries.get(generation)
        running = replica.trial is not None and replica.trial[0] == generation
        return begun is not None and replica.joined > begun and not running
