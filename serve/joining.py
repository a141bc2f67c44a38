"""How a replica joins the fleet of one model, at its start and after it fell out: load what is committed, be admitted.

Nothing is answered meanwhile: whoever joins has made the engine hold before.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from models.errors import CapacityError, LedgerError, RegistryError, ReleaseFaultError, SteelyardError
from models.rollout.messages import Join, Refused
from serve.loading import as_error, as_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rollout.messages import Admission
    from serve.faults import FaultPoints
    from serve.loading import Loader
    from serve.member_ports import ActorPort, EnginePort

_log = logging.getLogger(__name__)

CALL_DEADLINE_S: Final = 20.0
"""Longest wait for an answer of the actor to one call (seconds)."""
_PASSING: Final = (CapacityError, LedgerError, RegistryError)
"""Errors by which an actor, or the way to it, says that asking again may help."""


class Joining:
    """Asks what is committed, loads it, flips to it and asks to be admitted, until it is.

    Attributes: asked is when it last asked to be admitted; it stood in the ledger after that if it was.
    """

    def __init__(
        self,
        model: str,
        replica: str,
        *,
        engine: EnginePort,
        actor: ActorPort,
        loader: Loader,
        faults: FaultPoints,
        patience_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Ask nothing yet. patience_s: time after which an actor that cannot be reached is given up (seconds)."""
        self._model, self._replica = model, replica
        self._engine, self._actor, self._loader, self._faults = engine, actor, loader, faults
        self._patience_s, self._clock, self._sleep = patience_s, clock, sleep
        self.asked = clock()

    async def first(self) -> Join:
        """Join at the start and return what was loaded.

        Raises ReleaseRejectedError, ReleaseFaultError or what else the actor answered, such as UnknownModelError, with
        a clear text; the replica must not serve then.
        """
        deadline = self._clock() + self._patience_s
        while True:
            answer = await self._ask_what_to_load(deadline)
            if isinstance(answer, Refused):
                raise as_error(answer.failure)
            if answer is not None and await self._join(answer, deadline):
                return answer

    async def again(self) -> Join:
        """Join once more and return what was loaded; a failure is logged and all of it is tried again, for ever."""
        pause = 0.1
        while True:
            try:
                deadline = self._clock() + self._patience_s
                answer = await self._ask_what_to_load(deadline)
                if isinstance(answer, Join) and await self._join(answer, deadline):
                    return answer
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - held all the while; only success ends this
                _log.warning("could not join the fleet of %s again: %s", self._model, error)
            await self._sleep(pause)
            pause = min(2.0, pause * 2.0)

    async def _ask_what_to_load(self, deadline: float) -> Join | Refused | None:
        pause = 0.1
        while True:
            try:
                return await asyncio.wait_for(self._actor.committed(self._model, self._replica), CALL_DEADLINE_S)
            except Exception as error:
                if isinstance(error, SteelyardError) and not isinstance(error, _PASSING):
                    raise
                _log.info("the rollout actor did not answer for %s: %s", self._model, error)
                if self._clock() >= deadline:
                    msg = f"the rollout of {self._model} cannot be reached; see whether the cluster is up"
                    raise ReleaseFaultError(msg, step="fetch") from error
            await self._sleep(pause)
            pause = min(2.0, pause * 2.0)

    async def _join(self, join: Join, deadline: float) -> bool:
        """Load what ``join`` names, flip to it and be admitted; False where something newer must be loaded."""
        attempt = join.attempt
        try:
            await self._loader.load(attempt)
        except Exception as error:
            failure = as_failure(error)
            if not join.decided:
                await asyncio.wait_for(
                    self._actor.admit(self._model, self._replica, attempt.generation, failure), CALL_DEADLINE_S
                )
            raise as_error(failure) from error
        self._engine.flip(attempt.target.digest, attempt.generation)
        await self._faults.hit("replica.before_admit")
        while True:
            verdict: Admission = "retry"
            self.asked = self._clock()
            try:
                asked = self._actor.admit(self._model, self._replica, attempt.generation, None)
                verdict = await asyncio.wait_for(asked, CALL_DEADLINE_S)
            except Exception as error:
                if self._clock() >= deadline:
                    msg = f"the rollout of {self._model} does not admit this replica; see whether the cluster is up"
                    raise ReleaseFaultError(msg, step="commit") from error
            if verdict != "retry":
                await self._faults.hit("replica.after_admit")
                return verdict == "admitted"
            await self._sleep(0.1)
