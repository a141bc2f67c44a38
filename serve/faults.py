"""Named points in the rollout at which tests make a process die, fail or dawdle; nothing happens unless armed."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from models.errors import InvalidOptionError, SteelyardError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

ACTOR_POINTS: Final = (
    "actor.after_recover",  # the ledger is read, undecided attempts are aborted
    "actor.before_fetch",
    "actor.after_fetch",  # files are here, not verified
    "actor.after_verify",
    "actor.before_judge",  # the gates are about to be asked
    "actor.before_claim",
    "actor.after_claim",
    "actor.before_record",  # a new member is about to be made durable
    "actor.after_record",  # durable, not yet answered
    "actor.before_hold",  # the first HOLD is about to be sent
    "actor.after_hold",  # every member has acknowledged
    "actor.before_commit",
    "actor.after_commit",  # COMMIT stands, no GO is sent
    "actor.mid_go",  # one replica was told GO, the others were not
    "actor.before_abort",
    "actor.after_abort",
    "actor.before_alias",  # a rollback has flipped, the alias still names the bad version
)
REPLICA_POINTS: Final = (
    "replica.before_join",
    "replica.before_admit",
    "replica.after_admit",
    "replica.before_prepare",
    "replica.after_fetch",
    "replica.after_load",
    "replica.before_trial",  # told to begin a trial step, and for a canary held
    "replica.before_ack",  # held, not acknowledged
    "replica.after_ack",
    "replica.before_flip",
    "replica.after_flip",
    "replica.before_ask",  # in doubt, about to ask the ledger
    "replica.after_ask",
)
POINTS: Final = frozenset(ACTOR_POINTS + REPLICA_POINTS)
MIB: Final = 1024**2
MOST_DELAY_S: Final = 3600.0
"""An hour outlasts every test."""
MOST_LEAK_MIB: Final = 64
EXIT_STATUS: Final = 77
"""Exit status of a process that an armed point ended."""


class FaultInjectedError(SteelyardError):
    """An armed point was told to raise."""

    code = "fault_injected"


class FaultPoints:
    """Points of one process. Armed actions fire once: ``exit``, ``raise``, ``delay:<seconds>``, ``leak:<MiB>``."""

    def __init__(
        self,
        *,
        allowed: bool,
        leave: Callable[[int], object] = os._exit,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Start with nothing armed. allowed: the setting allow_fault_injection. leave: ends the process at once."""
        self._allowed = allowed
        self._leave = leave
        self._sleep = sleep
        self._armed: dict[str, str] = {}
        self._leaked: list[bytes] = []

    @property
    def allowed(self) -> bool:
        """Return whether points may be armed."""
        return self._allowed

    def arm(self, point: str, action: str) -> None:
        """Arm ``point``; raises InvalidOptionError unless allowed, known and well formed."""
        if not self._allowed:
            msg = "fault injection is off: start the service with STEELYARD_ALLOW_FAULT_INJECTION=true"
            raise InvalidOptionError(msg)
        if point not in POINTS:
            msg = f"there is no fault point {point!r}: use one of {', '.join(sorted(POINTS))}"
            raise InvalidOptionError(msg)
        check_action(action)
        self._armed[point] = action

    def armed(self, point: str) -> bool:
        """Return whether ``point`` would do something now."""
        return point in self._armed

    async def hit(self, point: str) -> None:
        """Do what ``point`` is armed with, once. Raises FaultInjectedError where it is told to raise."""
        action = self._armed.pop(point, None) if self._armed else None
        if action is None:
            return
        _log.warning("fault point %s: %s", point, action)
        if action == "exit":
            self._leave(EXIT_STATUS)
        elif action == "raise":
            msg = f"the fault point {point} was armed to raise"
            raise FaultInjectedError(msg)
        elif action.startswith("leak:"):
            # Written to, or the kernel would count none of it.
            self._leaked.append(b"\x01" * (int(action.removeprefix("leak:")) * MIB))
        else:
            await self._sleep(float(action.removeprefix("delay:")))


def check_action(action: str) -> None:
    """Refuse an action that the docstring of FaultPoints does not name; raises InvalidOptionError."""
    if action in ("exit", "raise"):
        return
    kind, _, amount = action.partition(":")
    try:
        fine = (kind == "delay" and 0.0 <= float(amount) < MOST_DELAY_S) or (
            kind == "leak" and 0 < int(amount) <= MOST_LEAK_MIB
        )
    except ValueError:
        fine = False
    if not fine:
        msg = f"{action!r} is no fault: use exit, raise, delay:<seconds> or leak:<MiB>"
        raise InvalidOptionError(msg)
