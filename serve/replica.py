"""One replica: the engines of all models, each a member of its model's fleet, and what the edge asks of them. No Ray.

Start: one after another the engines get their committed release and are admitted to their fleets, so that each measures
its plan on a quiet machine; a member's loop runs from its own admission on, for its fleet waits for it from then on.
Last the idle checks. Stop: the members leave, then the engines answer what they hold and close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from models.errors import CapacityError, SteelyardError, UnavailableError
from models.rollout.order import PLAIN
from serve.service import OPERATOR
from serve.supervision import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from concurrent.futures import Future

    from models.engine.engine import Engine
    from models.rollout.order import Order
    from models.weights.registry import VersionInfo
    from serve.webhook import Delivery

REGISTRY_DEADLINE_S: Final = 20.0
REGISTRY_THREADS: Final = 2
MOST_REGISTRY_READS: Final = 16
"""Reads of the registry that may run or wait; more are refused."""

STOP_DEADLINE_S: Final = 12.0
REFRESH_S: Final = 1.0
"""Time between two reports of counters and gauges: shorter than the node's reporting interval (seconds)."""

NOTHING: Final = MappingProxyType[str, "Callable[[], Coroutine[Any, Any, None]]"]({})

_log = logging.getLogger(__name__)


class Membership(Protocol):
    """One engine's place in its model's fleet; ``serve.member.Member`` fulfils it."""

    async def start(self) -> None:
        """Serve the committed release and be admitted."""
        ...

    async def run(self) -> None:
        """Follow the fleet's rollouts until cancelled."""
        ...

    async def stop(self) -> None:
        """Leave the fleet."""
        ...

    def healthy(self) -> str | None:
        """Return None, or why this replica must be replaced."""
        ...

    def ready(self) -> str | None:
        """Return None, or why no request should come here now."""
        ...


class Fleet(Protocol):
    """The rollout of every model, as the edge drives it."""

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout's state. Raises UnavailableError."""
        ...

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN, who: str = OPERATOR
    ) -> dict[str, object]:
        """Make ``version`` the desired one; return the rollout's state."""
        ...

    async def rollback(self, model: str, *, who: str = OPERATOR) -> dict[str, object]:
        """Return to the version before; return the rollout's state."""
        ...

    async def hint(self, model: str, delivery: Delivery) -> bool:
        """Say that the alias may have moved; False where the delivery is known. Raises UnavailableError."""
        ...

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point. Raises InvalidOptionError."""
        ...


class Versions(Protocol):
    """What a replica reads of the registry."""

    def versions(self, model: str) -> list[VersionInfo]:
        """Return all versions of ``model``, oldest first; blocks. Raises UnknownModelError or RegistryError."""
        ...


class _RegistryReads:
    """Reads of the registry on threads of their own: one that hangs must not take those that decode requests.

    Its methods belong to one event loop's thread.
    """

    def __init__(self, registry: Versions) -> None:
        self._registry = registry
        self._threads = ThreadPoolExecutor(REGISTRY_THREADS, thread_name_prefix="registry")
        self._reads: list[Future[list[VersionInfo]]] = []
        self._stuck: list[Future[list[VersionInfo]]] = []
        self._closed = False

    async def versions(self, model: str) -> Sequence[VersionInfo]:
        """Return the versions; refuse at once where every thread is stuck. Raises RegistryError, UnavailableError."""
        self._reads = [read for read in self._reads if not read.done()]
        self._stuck = [read for read in self._stuck if not read.done()]
        if self._closed or len(self._stuck) >= REGISTRY_THREADS or len(self._reads) >= MOST_REGISTRY_READS:
            msg = "The registry does not answer now; ask again later"
            raise UnavailableError(msg)
        read = self._threads.submit(self._registry.versions, model)
        self._reads.append(read)
        try:
            # Cancelling takes a read that waits out of the queue; one that runs goes on and counts as stuck.
            async with asyncio.timeout(REGISTRY_DEADLINE_S):
                return await asyncio.wrap_future(read)
        except TimeoutError:
            self._stuck.append(read)
            msg = "The registry did not answer in time; ask again"
            raise UnavailableError(msg) from None

    def close(self) -> None:
        """Refuse further reads and wait for none: a hanging one ends at its own deadline."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)


class IdleClock:
    """Tells for how long a model's engine has answered nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Count from now."""
        self._clock = clock
        self._last = clock()

    def touch(self) -> None:
        """Note an answer."""
        self._last = self._clock()

    def idle_s(self) -> float:
        """Return the seconds since the last answer."""
        return self._clock() - self._last


class Replica:
    """Fulfils ``serve.service.Service``."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        members: Mapping[str, Membership],
        idle: Mapping[str, IdleClock],
        *,
        fleet: Fleet,
        registry: Versions,
        exposition: Callable[[], Awaitable[bytes]],
        refresh: Callable[[], None],
        idle_check_s: float,
        workload: Callable[[], dict[str, float]] = dict,
        upkeep: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = NOTHING,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Start nothing yet.

        engines, members, idle: by model name, the same names in each. exposition: reads this node's metrics.
        refresh: reports counters and gauges; called every REFRESH_S.
        idle_check_s: after so many seconds without an answer an engine proves on a golden image that it sees.
        workload: reads what autoscaling is told of this replica.
        upkeep: name -> further work that goes on as long as the replica; one that ends makes it unhealthy.
        """
        self._engines = engines
        self._members = members
        self._idle = idle
        self._fleet = fleet
        self._reads = _RegistryReads(registry)
        self._exposition = exposition
        self._refresh = refresh
        self._idle_check_s = idle_check_s
        self._workload = workload
        self._upkeep = upkeep
        self._sleep = sleep
        self._tasks = Supervisor()
        self._blind: dict[str, str] = {}
        self._started = False
        self._stopping = False

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Return the engines by model name, in the order of the settings."""
        return self._engines

    async def start(self) -> None:
        """Bring every model to its committed release, one after another. Closes everything if that fails."""
        try:
            for engine in self._engines.values():
                await engine.__aenter__()
            for model, member in self._members.items():
                await member.start()
                self._tasks.start(f"the rollout member of {model}", member.run())
        except BaseException:
            await self.stop()
            raise
        for model in self._members:
            self._tasks.start(f"the idle check of {model}", self._prove_sight(model))
        self._tasks.start("the reports of metrics", self._keep_reporting())
        for name, work in self._upkeep.items():
            self._tasks.start(name, work())
        self._started = True

    async def stop(self) -> None:
        """Leave the fleets and close the engines; bounded by STOP_DEADLINE_S. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        self._reads.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._tasks.stop()
                for member in self._members.values():
                    await _quietly(member.stop())
                for engine in self._engines.values():
                    await _quietly(engine.close())

    def readiness(self) -> str | None:
        """Return None when every model answers, else the reason why not."""
        if self._stopping:
            return "the replica is stopping"
        if not self._started:
            return "the replica is starting"
        for model, engine in self._engines.items():
            if engine.serving is None:
                return f"no version of {model} serves yet; promote one, or wait until it is prepared"
            reason = self._members[model].ready()
            if reason is not None:
                return f"{model}: {reason}"
        return self.failure()

    def failure(self) -> str | None:
        """Return what is broken in this replica beyond repair, or None."""
        dead = self._tasks.failure()
        if dead is not None:
            return dead
        for model, member in self._members.items():
            reason = self._blind.get(model) or member.healthy()
            if reason is not None:
                return f"{model}: {reason}"
        return None

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout's state. Raises UnavailableError."""
        return await self._fleet.status(model)

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN, who: str = OPERATOR
    ) -> dict[str, object]:
        """Make ``version`` the desired one; return the rollout's state."""
        return await self._fleet.promote(model, version, reason=reason, order=order, who=who)

    async def rollback(self, model: str, *, who: str = OPERATOR) -> dict[str, object]:
        """Return to the version before; return the rollout's state."""
        return await self._fleet.rollback(model, who=who)

    async def hint(self, model: str, delivery: Delivery) -> bool:
        """Say that the alias may have moved; False where the delivery is known. Raises UnavailableError."""
        return await self._fleet.hint(model, delivery)

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point. Raises InvalidOptionError."""
        await self._fleet.arm(point, action)

    async def versions(self, model: str) -> Sequence[VersionInfo]:
        """Return all versions of ``model``, oldest first. Raises RegistryError or UnavailableError."""
        return await self._reads.versions(model)

    async def metrics(self) -> bytes:
        """Return the metrics of this node in Prometheus' text format. Raises UnavailableError."""
        return await self._exposition()

    def workload(self) -> dict[str, float]:
        """Return what autoscaling is told of this replica, by signal."""
        return self._workload()

    async def _keep_reporting(self) -> None:
        while True:
            self._refresh()
            await self._sleep(REFRESH_S)

    async def _prove_sight(self, model: str) -> None:
        engine, idle = self._engines[model], self._idle[model]
        while True:
            await self._sleep(max(self._idle_check_s - idle.idle_s(), self._idle_check_s / 10))
            if idle.idle_s() < self._idle_check_s or engine.serving is None:
                continue
            try:
                await engine.check_sight()
            except CapacityError:
                continue
            except SteelyardError as error:
                _log.error("the idle check failed", extra={"model": model, "reason": str(error)})
                self._blind[model] = str(error)
            else:
                self._blind.pop(model, None)
            idle.touch()


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - the other parts must still be stopped
        _log.exception("a part of the replica did not stop cleanly")
