"""The rollout actor: one process a deployment that brings desired weights to all replicas, and how to reach it."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import ray

from models.errors import LedgerError, UnavailableError, UnknownModelError
from models.rollout import ledger as rules
from models.rollout.state import Timing
from models.weights.cache import CommittedStore, ReleaseCache
from models.weights.mlflow_registry import MlflowRegistry
from serve.audit import Audit
from serve.depot import Depot
from serve.faults import REPLICA_POINTS, FaultPoints, check_action
from serve.ledger import RayLedger
from serve.reconciler import Parts, Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report
    from serve.settings import Settings

_log = logging.getLogger(__name__)

NAMESPACE: Final = "steelyard"
REPLICA_NAMESPACE: Final = "serve"
"""Ray namespace in which Serve names its replicas."""
MOST_CALLS: Final = 8192
"""Calls that may wait in the actor at once: a long poll for each model of each replica, and people."""
ROLLBACK_WAIT_S: Final = 20.0
DEPLOYMENT: Final = "detector"
CONNECT_DEADLINE_S: Final = 30.0
POLL_DEADLINE_S: Final = 15.0
CALL_DEADLINE_S: Final = 15.0
PEOPLE_DEADLINE_S: Final = 60.0
FILES_DEADLINE_S: Final = 300.0
REGISTRY_THREADS: Final = 4
DISK_THREADS: Final = 4


class RolloutActor:
    """Reconciles every model of one deployment; see ``serve/reconciler.py``. Methods are called through its handle."""

    def __init__(self, settings: Settings, deployment: str) -> None:
        """Begin a new life: claim an incarnation in the ledger, then recover each model. Runs on the actor's loop."""
        registry = MlflowRegistry(settings.tracking_uri, artifact_root=None)
        self._ledger = RayLedger(deployment)
        self._faults = FaultPoints(allowed=settings.allow_fault_injection)
        self._cache = ReleaseCache(settings.cache)
        registry_thread = _runner(ThreadPoolExecutor(REGISTRY_THREADS, thread_name_prefix="registry"))
        thread = _runner(ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk"))
        self._thread = thread
        self._depot = Depot(registry, self._cache, share=ray.put, in_thread=registry_thread, faults=self._faults)
        parts = Parts(
            registry=registry,
            depot=self._depot,
            store=CommittedStore(settings.root),
            ledger=self._ledger,
            audit=Audit(settings.root / "audit"),
            faults=self._faults,
            names=lambda: live_replicas(actor_name(deployment)),
            in_thread=thread,
            in_registry_thread=registry_thread,
            depose=lambda: os._exit(1),
            on_commit=self._tidy,
            timing=Timing(
                hold_deadline_s=settings.hold_deadline_s, prepare_timeout_s=settings.prepare_timeout_s + 10.0
            ),
            poll_interval_s=settings.poll_interval_s,
            prepare_timeout_s=settings.prepare_timeout_s,
        )
        self._models = {model: Reconciler(model, parts) for model in settings.models}
        self._begun = asyncio.Event()
        self._birth = asyncio.get_running_loop().create_task(self._begin())

    async def _begin(self) -> None:
        token, pause = uuid4().hex, 0.05
        while True:
            try:
                incarnation = await rules.run(rules.claim_incarnation(token), self._ledger)
                break
            except LedgerError as error:
                _log.warning("the rollout actor cannot begin yet: %s", error)
            except Exception as error:  # noqa: BLE001 - a life that cannot begin ends; the next one tries again
                await _end(error)
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2.0)
        _log.info("the rollout actor begins its life %d", incarnation)
        results = await asyncio.gather(
            *(model.begin(incarnation) for model in self._models.values()), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                await _end(result)
        self._begun.set()

    async def ping(self) -> bool:
        """Return True when the actor knows the state of its models, False after some seconds where it does not yet."""
        try:
            await asyncio.wait_for(self._begun.wait(), 10.0)
        except TimeoutError:
            return False
        return True

    async def next(self, model: str, report: Report) -> PollReply:
        """Take a replica's report; return what it should do, after some seconds at most."""
        return await (await self._model(model)).next(report)

    async def committed(self, model: str) -> Join | Refused | None:
        """Return what a starting replica must load."""
        return await (await self._model(model)).join()

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Admit a replica that has loaded ``generation``, or hear why it could not."""
        return await (await self._model(model)).admit(replica, generation, failure)

    async def leave(self, model: str, replica: str) -> None:
        """Forget a replica that can start no batch any more."""
        (await self._model(model)).leave(replica)

    async def files(self, model: str, version: str, digest: str) -> list[Any]:
        """Return the object reference of a release's files, in a list so that Ray hands it on unopened."""
        return [await (await self._model(model)).files(version, digest)]

    async def promote(self, model: str, version: str, reason: str = "promote", who: str = "operator") -> dict[str, Any]:
        """Make ``version`` the desired one and begin at once; return the status."""
        found = await self._model(model)
        await found.promote(version, reason, who)
        return dict(found.status())

    async def rollback(self, model: str, who: str = "operator") -> dict[str, Any]:
        """Bring back what served before; return the status when it serves, or after some seconds."""
        found = await self._model(model)
        await found.roll_back(ROLLBACK_WAIT_S, who)
        return dict(found.status())

    async def hint(self, model: str) -> None:
        """Read the alias soon."""
        (await self._model(model)).hint()

    async def status(self, model: str) -> dict[str, Any]:
        """Return the rollout of ``model`` as ``GET /v1/models/{m}/rollout`` shows it."""
        return dict(self._known(model).status())

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point here, in every replica (``replica.*``) or in one (``replica.*@<id>``). Tests only."""
        name, _, replica = point.partition("@")
        if name not in REPLICA_POINTS:
            self._faults.arm(name, action)
            return
        # The same checks as in the replica, so that a mistake shows here.
        FaultPoints(allowed=self._faults.allowed).arm(name, action)
        check_action(action)
        for model in self._models.values():
            model.arm(name, action, replica or None)

    def _known(self, model: str) -> Reconciler:
        found = self._models.get(model)
        if found is None:
            msg = f"no model named {model} is served here; GET /v1/models lists those that are"
            raise UnknownModelError(msg)
        return found

    async def _model(self, model: str) -> Reconciler:
        found = self._known(model)
        if not await self.ping():
            msg = "the rollout is starting and cannot reach its ledger yet; try again soon"
            raise UnavailableError(msg)
        return found

    def _tidy(self) -> None:
        keep = frozenset[str]().union(*(model.wanted for model in self._models.values()))
        self._depot.keep_only(keep)
        task = asyncio.get_running_loop().create_task(self._prune(keep))
        self._pruning = task

    async def _prune(self, keep: frozenset[str]) -> None:
        try:
            await self._thread(self._cache.prune, keep)
        except OSError as error:
            _log.warning("old releases could not be removed from the cache: %s", error)


async def connect(settings: Settings, deployment: str = DEPLOYMENT) -> RolloutClient:
    """Return a client of the deployment's rollout actor, created if need be. Raises UnavailableError.

    The actor outlives the process that made it and is restarted for ever; ``settings`` matter to the first caller only.
    """
    try:
        handle = await asyncio.wait_for(asyncio.to_thread(_get_or_create, settings, deployment), CONNECT_DEADLINE_S)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise unwrap(error) from error
    return RolloutClient(handle)


def _get_or_create(settings: Settings, deployment: str) -> Any:
    actor = ray.remote(RolloutActor).options(
        name=actor_name(deployment),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=MOST_CALLS,
        get_if_exists=True,
    )
    return actor.remote(settings, deployment)


def actor_name(deployment: str = DEPLOYMENT) -> str:
    """Return the name under which Ray knows the actor, in ``NAMESPACE``."""
    return f"steelyard-rollout-{deployment}"


class RolloutClient:
    """What replicas and the edge ask of the rollout actor; implements serve.member.ActorPort.

    Every method raises the error that the actor raised, or UnavailableError where it cannot be asked.
    """

    def __init__(self, handle: Any) -> None:
        """Keep the actor's handle."""
        self._handle = handle

    async def next(self, model: str, report: Report) -> PollReply:
        """See ActorPort."""
        reply: PollReply = await self._ask("next", model, report, deadline_s=POLL_DEADLINE_S)
        return reply

    async def committed(self, model: str, replica: str) -> Join | Refused | None:  # noqa: ARG002 - the port's
        """See ActorPort."""
        answer: Join | Refused | None = await self._ask("committed", model)
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

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout of ``model`` as ``GET /v1/models/{m}/rollout`` shows it. Raises UnknownModelError."""
        found: dict[str, object] = await self._ask("status", model)
        return found

    async def promote(
        self, model: str, version: str, reason: str = "promote", who: str = "operator"
    ) -> dict[str, object]:
        """Make ``version`` the desired one; return the status.

        Raises UnknownVersionError, ReleaseRejectedError with step ``promote``, or RegistryError.
        """
        found: dict[str, object] = await self._ask("promote", model, version, reason, who, deadline_s=PEOPLE_DEADLINE_S)
        return found

    async def rollback(self, model: str, who: str = "operator") -> dict[str, object]:
        """Bring back what served before; return the status. Raises ReleaseRejectedError with step ``rollback``."""
        found: dict[str, object] = await self._ask("rollback", model, who, deadline_s=PEOPLE_DEADLINE_S)
        return found

    async def hint(self, model: str) -> None:
        """Say that the alias may have moved."""
        await self._ask("hint", model)

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point; see RolloutActor.arm. Raises InvalidOptionError unless faults are allowed."""
        await self._ask("arm", point, action)

    async def _ask(self, method: str, *arguments: object, deadline_s: float = CALL_DEADLINE_S) -> Any:
        return await _within(getattr(self._handle, method).remote(*arguments), deadline_s)


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


def live_replicas(witness: str) -> frozenset[str] | None:
    """Return the names of all replicas that Ray counts as alive, or None where it cannot be trusted; blocks.

    witness: name of an actor that is alive for certain. A list without it comes from a store that has lost its memory.
    ``ray.get_actor`` would not do: a process that has looked a name up once is answered from its own cache for ever.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    if {"namespace": NAMESPACE, "name": witness} not in actors:
        return None
    return frozenset(actor["name"] for actor in actors if actor["namespace"] == REPLICA_NAMESPACE)


async def _end(error: BaseException) -> None:
    _log.critical("the rollout actor could not recover and begins again", exc_info=error)
    await asyncio.sleep(1.0)
    os._exit(1)


def _runner(pool: ThreadPoolExecutor) -> Callable[..., Any]:
    async def run(call: Callable[..., Any], *args: object, **named: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(call, *args, **named))

    return run
