"""Runs one model's ledger programs, one after another: their order is part of the protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeVar

from models.errors import LedgerError, SteelyardError
from models.rollout import ledger, state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.ledger import Ledger
    from serve.faults import FaultPoints

_log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_WAITING: Final = 1024
LONGEST_PAUSE_S: Final = 1.0


class Programs:
    """A queue of effects that need the ledger, and the loop that carries them out and feeds what came of them."""

    def __init__(
        self,
        model: str,
        store: Ledger,
        *,
        faults: FaultPoints,
        feed: Callable[[state.Event], None],
        before_claim: Callable[[], Awaitable[None]],
        depose: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Start with nothing queued.

        Args:
            model: whose keys are written.
            store: the ledger.
            faults: named points.
            feed: takes the event in which a program ends.
            before_claim: awaited before a generation is claimed.
            depose: ends the process.
            sleep: waits so many seconds.
        """
        self._model, self._ledger, self._faults = model, store, faults
        self._feed, self._before_claim, self._depose, self._sleep = feed, before_claim, depose, sleep
        self._waiting: asyncio.Queue[tuple[int, state.Effect]] = asyncio.Queue(MOST_WAITING)

    def queue(self, effect: state.Effect, incarnation: int) -> None:
        """Queue an effect of the actor's life ``incarnation``."""
        try:
            self._waiting.put_nowait((incarnation, effect))
        except asyncio.QueueFull:
            # A machine whose effects are lost cannot go on; a new life recovers everything from the ledger.
            _log.critical("too many ledger programs wait for %s; the actor begins again", self._model)
            self._depose()

    async def run(self) -> None:
        """Carry out what is queued, for ever."""
        while True:
            incarnation, effect = await self._waiting.get()
            event = await self._carry_out(effect, incarnation)
            if event is not None:
                self._feed(event)

    async def until_reached(self, program: Callable[[], ledger.Program[T]]) -> T:
        """Run a program; where the ledger fails, run it again from its start, which its keys allow, until it ends."""
        pause = 0.05
        while True:
            try:
                return await ledger.run(program(), self._ledger)
            except LedgerError as error:
                _log.warning("the ledger of %s failed, asking again: %s", self._model, error)
            await self._sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * 2.0)

    async def _carry_out(self, effect: state.Effect, incarnation: int) -> state.Event | None:
        model = self._model
        match effect:
            case state.Claim(attempt):
                await self._hit("actor.before_claim")
                await self._before_claim()
                outcome = await self.until_reached(lambda: ledger.claim(model, attempt))
                await self._hit("actor.after_claim")
                return state.Claimed(attempt, outcome)
            case state.Decide(generation, verdict):
                return await self._decide(generation, verdict)
            case state.RecordMember(replica):
                await self._hit("actor.before_record")
                fine = await self.until_reached(lambda: ledger.record_member(model, replica, incarnation))
                await self._hit("actor.after_record")
                return state.MemberRecorded(replica, in_charge=fine)
            case state.ForgetMember(replica):
                await self.until_reached(lambda: ledger.forget_member(model, replica))
                return state.MemberForgotten(replica)
            case state.Announce(attempt):
                await self.until_reached(lambda: ledger.sweep(model, attempt.generation))
            case _:
                _log.error("%s needs no ledger. This is a bug.", type(effect).__name__)
        return None

    async def _decide(self, generation: int, verdict: ledger.Verdict) -> state.Event:
        commit = verdict == "COMMIT"
        if commit:
            await self._hit("actor.after_hold")
        await self._hit("actor.before_commit" if commit else "actor.before_abort")
        standing = await self.until_reached(lambda: _single(ledger.decision(self._model, generation, verdict)))
        await self._hit("actor.after_commit" if commit else "actor.after_abort")
        return state.Decided(generation, "COMMIT" if standing == "COMMIT" else "ABORT")

    async def _hit(self, point: str) -> None:
        try:
            await self._faults.hit(point)
        except SteelyardError as error:
            # A program that has begun must end in its event, or the machine would wait for it for ever.
            _log.warning("%s", error)


def _single(op: ledger.Op) -> ledger.Program[ledger.Result]:
    return (yield op)
