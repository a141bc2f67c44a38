"""Carries out what one model's member machine wants done in a replica; what takes time ends in an event."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from models.errors import LedgerError, ReleaseError
from models.rollout import ledger as rules
from models.rollout import member
from serve.loading import as_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from models.rollout.ledger import Ledger
    from models.rollout.messages import Attempt
    from models.rollout.trial import TrialStep
    from serve.faults import FaultPoints
    from serve.joining import Joining
    from serve.loading import Loader
    from serve.member_ports import EnginePort

_log = logging.getLogger(__name__)


class MemberEffects:
    """Does one effect after another, in the order in which the machine wants them."""

    def __init__(
        self,
        model: str,
        replica: str,
        *,
        engine: EnginePort,
        ledger: Ledger,
        loader: Loader,
        joining: Joining,
        faults: FaultPoints,
        happened: Callable[[member.Event], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Do nothing yet. happened: takes the event in which an effect ends."""
        self._model, self._replica, self._engine, self._ledger = model, replica, engine, ledger
        self._loader, self._joining, self._faults = loader, joining, faults
        self._happened, self._clock, self._sleep = happened, clock, sleep
        self._work: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flipped_at = float("-inf")

    @property
    def since_flip_s(self) -> float:
        """Return the seconds since a commit made this replica answer with something else, infinity before one did."""
        return self._clock() - self._flipped_at

    def cancel(self) -> None:
        """End everything that takes time."""
        for task in list(self._tasks):
            task.cancel()

    async def do(self, effect: member.Effect) -> None:  # noqa: C901, PLR0912 - one arm an effect
        """Carry out one effect, or begin to. Raises what the engine raises."""
        match effect:
            case member.Prepare(attempt):
                self._work = self._spawn(self._prepare(attempt))
            case member.Cancel():
                if self._work is not None:
                    self._work.cancel()
            case member.Discard(digest):
                self._engine.discard(digest)
            case member.BeginTrial(attempt, step):
                await self._faults.hit("replica.before_trial")
                self._begin_trial(attempt, step)
            case member.EndTrial():
                self._engine.end_trial()
            case member.Hold():
                self._engine.hold()
                await self._faults.hit("replica.before_ack")
            case member.Resume():
                self._engine.resume()
            case member.Flip(digest, generation):
                await self._faults.hit("replica.before_flip")
                self._engine.flip(digest, generation)
                self._flipped_at = self._clock()
                await self._faults.hit("replica.after_flip")
            case member.Ask(generation):
                self._spawn(self._ask(generation))
            case member.Confirm():
                self._spawn(self._confirm())
            case member.FailAll(message):
                self._engine.fail_all(message)
            case member.Rejoin():
                self._spawn(self._rejoin())

    def _begin_trial(self, attempt: Attempt, step: TrialStep) -> None:
        try:
            self._engine.begin_trial(attempt.target.digest, attempt.generation, canary=step.canary, shadow=step.shadow)
        except ReleaseError as error:
            self._happened(member.TrialFailed(attempt, as_failure(error)))
        else:
            self._happened(member.TrialBegun(attempt, step.number))

    # What takes time, each in a task of its own that always ends in an event

    async def _prepare(self, attempt: Attempt) -> None:
        try:
            # A rollback must not wait for a measurement of what has served before.
            golden_ms = await self._loader.load(attempt, timed=not attempt.rollback)
        except asyncio.CancelledError:
            if self._loader.loaded == attempt:
                # Loading had just ended, so the engine freed nothing: the machine does, if nobody wants it any more.
                self._happened(member.Prepared(attempt))
            raise
        except Exception as error:  # noqa: BLE001 - reported, so that the rollout ends
            self._happened(member.PrepareFailed(attempt, as_failure(error)))
        else:
            self._happened(member.Prepared(attempt, golden_ms))

    async def _ask(self, generation: int) -> None:
        try:
            await self._faults.hit("replica.before_ask")
            verdict = await rules.perform(rules.decision(self._model, generation, "ABORT"), self._ledger)
            await self._faults.hit("replica.after_ask")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, nobody knows what stands: hold on and ask again
            if not isinstance(error, LedgerError):
                _log.warning("asking the ledger failed: %s", error)
            await self._sleep(0.05)
            self._happened(member.LedgerSilent(generation))
        else:
            self._happened(member.Ruled(generation, "COMMIT" if verdict == "COMMIT" else "ABORT"))

    async def _confirm(self) -> None:
        asked = self._clock()
        try:
            found = await rules.perform(rules.membership(self._model, self._replica), self._ledger)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, the time that is left runs on
            _log.info("the ledger did not tell whether it counts this replica of %s: %s", self._model, error)
            self._happened(member.Unconfirmed())
        else:
            self._happened(member.Confirmed(asked, member=found is not None))

    async def _rejoin(self) -> None:
        attempt = (await self._joining.again()).attempt
        self._happened(member.Joined(attempt.generation, attempt.target.digest, self._joining.asked))

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
