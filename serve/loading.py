"""Brings one release into a replica's engine: from the rollout actor's memory, or from the cache of this machine."""

from __future__ import annotations

import asyncio
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

from models.engine.priority import give_way
from models.errors import ReleaseError, ReleaseFaultError, ReleaseRejectedError
from models.rollout.messages import Failure
from models.weights.release import open_release

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.rollout.messages import Attempt, Target
    from models.types import Release
    from models.weights.cache import ReleaseCache
    from models.weights.trust import SignatureRule
    from serve.faults import FaultPoints
    from serve.member_ports import ActorPort, EnginePort

    Aside: TypeAlias = Callable[..., Awaitable[Any]]
    """Runs a blocking call on the thread of this load: the call, its arguments."""

_log = logging.getLogger(__name__)


class Loader:
    """Loads releases of one model into one engine. ``loaded`` is the attempt that the engine last took, or None."""

    def __init__(
        self,
        model: str,
        engine: EnginePort,
        actor: ActorPort,
        cache: ReleaseCache | None,
        *,
        rule: SignatureRule,
        faults: FaultPoints,
        timeout_s: float,
    ) -> None:
        """Load nothing yet.

        cache: keeps what was loaded, None for none; rule: which signatures count; timeout_s: longest time for a whole
        load.
        """
        self._model, self._engine, self._actor, self._cache = model, engine, actor, cache
        self._rule, self._faults, self._timeout_s = rule, faults, timeout_s
        self._signatures: dict[tuple[str, str], str] = {}
        self.loaded: Attempt | None = None

    async def load(self, attempt: Attempt, *, timed: bool = False) -> tuple[float, float] | None:
        """Make the attempt's release the engine's candidate, verified and warm.

        Return ``EnginePort.golden_ms`` where it is to be ``timed``, as a promotion beside answers is, else None. Raises
        ReleaseError, TimeoutError when the time is up, or whatever else went wrong; see ``as_failure``.
        """
        return await asyncio.wait_for(self._load(attempt, timed=timed), self._timeout_s)

    async def _load(self, attempt: Attempt, *, timed: bool) -> tuple[float, float] | None:
        self.loaded = None
        await self._faults.hit("replica.before_prepare")
        target = attempt.target
        if self._engine.has(target.version, target.digest):
            await self._still_counts(target)
            self.loaded = attempt
        else:
            # A thread of its own, so that a disk that hangs holds up no later load. What is promoted is loaded beside
            # answers, and hashing and writing it gives way to them; whoever joins answers nothing yet.
            thread = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=give_way if timed else None)
            try:
                await self._load_anew(attempt, functools.partial(_aside, thread))
            finally:
                thread.shutdown(wait=False, cancel_futures=True)
        return await self._engine.golden_ms(target.digest) if timed else None

    async def _load_anew(self, attempt: Attempt, aside: Aside) -> None:
        target = attempt.target
        signature = await self._signature(target.version, target.digest, aside)
        files = await self._files(target.version, target.digest, aside)
        await self._faults.hit("replica.after_fetch")
        release = await aside(
            open_release,
            self._model,
            target.version,
            files,
            expect_digest=target.digest,
            verify_signature=self._rule.check(signature),
        )
        await self._engine.prepare(release)
        self.loaded = attempt
        self._remember(target, signature)
        await self._faults.hit("replica.after_load")
        if self._cache is not None:
            await self._keep(self._cache, target, files, signature, aside)

    async def _still_counts(self, target: Target) -> None:
        """Judge what is resident once more, which takes no hashing: its key may have been distrusted since."""
        signature = self._signatures.get((target.version, target.digest), "")
        if signature or self._rule.required:
            await asyncio.to_thread(self._rule.judge, self._model, target.version, target.digest, signature)

    def _remember(self, target: Target, signature: str) -> None:
        key = (target.version, target.digest)
        resident = {known: text for known, text in self._signatures.items() if self._engine.has(*known)}
        self._signatures = {**resident, key: signature}

    async def _signature(self, version: str, digest: str, aside: Aside) -> str:
        try:
            return await asyncio.wait_for(self._actor.signature(self._model, version, digest), self._timeout_s)
        except ReleaseError:
            raise  # it was refused
        except Exception as error:
            _log.info("the rollout actor did not tell who signed version %s of %s: %s", version, self._model, error)
            if self._cache is None:
                raise
            known = await aside(self._cache.signatures.get, self._model, version, digest)
            if known is None and self._rule.required:
                raise
            return known or ""

    async def _files(self, version: str, digest: str, aside: Aside) -> Mapping[str, NDArray[np.uint8]]:
        try:
            return await asyncio.wait_for(self._actor.files(self._model, version, digest), self._timeout_s)
        except Exception as error:
            _log.info("the rollout actor did not hand out version %s of %s: %s", version, self._model, error)
            if self._cache is None:
                raise
            # A damaged copy raises a fault, never a rejection: it speaks against this machine, not the release.
            cached: Release | None = await aside(self._cache.open, self._model, version, digest)
            if cached is None:
                raise
            return cached.files

    async def _keep(
        self,
        cache: ReleaseCache,
        target: Target,
        files: Mapping[str, NDArray[np.uint8]],
        signature: str,
        aside: Aside,
    ) -> None:
        version, digest = target.version, target.digest
        try:
            await aside(cache.put, digest, files)
            if await aside(cache.signatures.get, self._model, version, digest) != signature:
                await aside(cache.signatures.keep, self._model, version, digest, signature)
        except ReleaseFaultError as error:
            _log.warning("version not kept on this machine: %s", error)


async def _aside(thread: ThreadPoolExecutor, call: Callable[..., Any], *args: object, **named: object) -> Any:
    return await asyncio.get_running_loop().run_in_executor(thread, functools.partial(call, *args, **named))


def as_failure(error: Exception) -> Failure:
    """Return what the fleet is told of a load that failed: domain errors keep their words, others stay in the log."""
    if isinstance(error, ReleaseError):
        return Failure(error.step, str(error), permanent=error.permanent)
    if isinstance(error, TimeoutError):
        return Failure("load", "loading took longer than prepare_timeout_s allows", permanent=False)
    if isinstance(error, MemoryError):
        return Failure("load", "there is not enough memory to load it", permanent=False)
    _log.error("a release could not be prepared", exc_info=error)
    return Failure("load", "loading failed for a reason that only the log tells", permanent=False)


def as_error(failure: Failure) -> ReleaseError:
    """Return the error that tells ``failure``: ReleaseRejectedError where it is permanent, else ReleaseFaultError."""
    kind = ReleaseRejectedError if failure.permanent else ReleaseFaultError
    return kind(failure.reason, step=failure.step)
