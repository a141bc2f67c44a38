"""The way to the rollout actor: what replicas and the edge call, and how they find the right one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import ray

from models.errors import UnavailableError
from models.rollout.order import PLAIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.quota.messages import Grant
    from models.quota.messages import Report as QuotaReport
    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report
    from models.rollout.order import Order
    from serve.webhook import Delivery

_log = logging.getLogger(__name__)

CONNECT_PAUSE_S: Final = 0.5
POLL_DEADLINE_S: Final = 15.0
CALL_DEADLINE_S: Final = 15.0
PEOPLE_DEADLINE_S: Final = 60.0
FILES_DEADLINE_S: Final = 300.0
DEAD_S: Final = 10.0
"""Seconds for which an actor must be found dead, without a break, before it is looked for anew. It restarts within a
second or two; only a redeployment with other settings ends it for good."""


class RolloutClient:
    """What replicas and the edge ask of the rollout actor; implements serve.member_ports.ActorPort.

    Every method raises the error that the actor raised, or UnavailableError where it cannot be asked.
    """

    def __init__(
        self, handle: Any, renew: Callable[[Any], Awaitable[Any]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the actor's handle. renew: returns the handle of the actor that came after a dead one."""
        self._handle, self._renew, self._clock = handle, renew, clock
        self._dead_since: float | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def next(self, model: str, report: Report) -> PollReply:
        """See ActorPort."""
        reply: PollReply = await self._ask("next", model, report, deadline_s=POLL_DEADLINE_S)
        return reply

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """See ActorPort."""
        answer: Join | Refused | None = await self._ask("committed", model, replica)
        return answer

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """See ActorPort."""
        answer: Admission = await self._ask("admit", model, replica, generation, failure)
        return answer

    async def leave(self, model: str, replica: str) -> None:
        """See ActorPort."""
        await self._ask("leave", model, replica)

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """See ActorPort; on the actor's own node the arrays are read-only views of shared memory."""
        (reference,) = await self._ask("files", model, version, digest, deadline_s=FILES_DEADLINE_S)
        files: Mapping[str, NDArray[np.uint8]] = await _within(reference, FILES_DEADLINE_S)
        return files

    async def signature(self, model: str, version: str, digest: str) -> str:
        """See ActorPort."""
        found: str = await self._ask("signature", model, version, digest, deadline_s=FILES_DEADLINE_S)
        return found

    async def quota(self, report: QuotaReport) -> Grant:
        """Report what this replica has and wants of its limited keys; return what it may let in."""
        grant: Grant = await self._ask("quota", report)
        return grant

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout of ``model`` as ``GET /v1/models/{m}/rollout`` shows it. Raises UnknownModelError."""
        found: dict[str, object] = await self._ask("status", model)
        return found

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", who: str = "operator", order: Order = PLAIN
    ) -> dict[str, object]:
        """Make ``version`` the desired one; return the status.

        Raises UnknownVersionError, ReleaseRejectedError with step ``promote``, or RegistryError.
        """
        found: dict[str, object] = await self._ask(
            "promote", model, version, reason, who, order, deadline_s=PEOPLE_DEADLINE_S
        )
        return found

    async def rollback(self, model: str, *, who: str = "operator") -> dict[str, object]:
        """Bring back what served before; return the status. Raises ReleaseRejectedError with step ``rollback``."""
        found: dict[str, object] = await self._ask("rollback", model, who, deadline_s=PEOPLE_DEADLINE_S)
        return found

    async def hint(self, model: str, delivery: Delivery | None = None) -> bool:
        """Say that the alias may have moved; False, and nothing happens, where the actor knows ``delivery``."""
        new: bool = await self._ask("hint", model, delivery)
        return new

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point; see RolloutActor.arm. Raises InvalidOptionError unless faults are allowed."""
        await self._ask("arm", point, action)

    async def _ask(self, method: str, *arguments: object, deadline_s: float = CALL_DEADLINE_S) -> Any:
        handle = self._handle
        try:
            answer = await asyncio.wait_for(getattr(handle, method).remote(*arguments), deadline_s)
        except ray.exceptions.ActorDiedError as error:
            self._died(handle)
            raise unwrap(error) from error
        except (TimeoutError, ray.exceptions.RayError) as error:
            raise unwrap(error) from error
        self._dead_since = None
        return answer

    def _died(self, handle: Any) -> None:
        if handle is not self._handle:
            return
        now = self._clock()
        if self._dead_since is None:
            self._dead_since = now
        elif now - self._dead_since >= DEAD_S and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.create_task(self._look_again(handle))

    async def _look_again(self, dead: Any) -> None:
        try:
            self._handle = await asyncio.wait_for(self._renew(dead), CALL_DEADLINE_S)
        except Exception as error:  # noqa: BLE001 - whatever failed, the next call that finds it dead tries again
            _log.warning("the rollout actor that came after the dead one was not found: %s", error)
        else:
            self._dead_since = None


async def _within(reference: Any, deadline_s: float) -> Any:
    try:
        return await asyncio.wait_for(reference, deadline_s)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise unwrap(error) from error


def unwrap(error: Exception) -> Exception:
    """Return the error that the actor raised inside ``error``, else UnavailableError: the actor could not be asked."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(cause, Exception):
        return cause
    msg = "the rollout cannot be reached now; it restarts by itself, try again soon"
    return UnavailableError(msg)


async def matching(
    get: Callable[[], Awaitable[Any]],
    wanted: str,
    *,
    ask: Callable[[Any], Awaitable[str | None]],
    end: Callable[[Any], Awaitable[None]],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Any:
    """Return the handle of an actor whose fingerprint is ``wanted``; runs until it has one.

    Several replicas may do this at once: a handle stands for one actor, never for its successor of the same name, so
    ending it twice, or after another replica did, ends nothing else.

    get: returns the handle of the actor, created if need be; raises ValueError where it went meanwhile.
    ask: returns its fingerprint, None where it is dead for good; raises ActorUnavailableError while it restarts.
    end: ends it for good, if it lives.
    """
    while True:
        try:
            handle = await get()
            if await ask(handle) == wanted:
                return handle
            await end(handle)
        except (ray.exceptions.ActorUnavailableError, ValueError) as error:
            _log.info("the rollout actor restarts, or its name is just being freed: %s", error)
        await sleep(CONNECT_PAUSE_S)


async def fingerprint_of(handle: Any) -> str | None:
    """Return the fingerprint of the settings that the actor works with, None where it is dead or knows of none."""
    try:
        found: str = await handle.fingerprint.remote()
    except (ray.exceptions.ActorDiedError, AttributeError):
        # Without the method it is of an earlier version of the service.
        return None
    return found


async def end_for_good(handle: Any) -> None:
    """End exactly the actor behind ``handle``, so that its name is free; nothing happens where it has ended."""
    _log.warning("the rollout actor is gone or has other settings than this replica: it is made anew")
    try:
        # Also for a dead one: until then Ray answers this process with the dead handle when asked for the name.
        await asyncio.to_thread(ray.kill, handle, no_restart=True)
    except (ray.exceptions.RayError, ValueError) as error:
        _log.info("the rollout actor had ended already: %s", error)
