"""The rollout actor: one process a deployment that brings desired weights to all replicas."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import ray

from models.engine.priority import give_way
from models.errors import LedgerError, UnavailableError, UnknownModelError
from models.rollout import ledger as rules
from models.rollout.order import PLAIN
from models.rollout.probation import ProbationLimits
from models.rollout.state import Timing
from models.rollout.trial import TrialLimits
from models.weights.cache import CommittedStore, ReleaseCache
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.retention import NOTHING_BESIDE, Rule, fates
from serve.audit import Audit
from serve.depot import MOST_DOWNLOADS, Depot
from serve.faults import REPLICA_POINTS, FaultPoints, check_action
from serve.in_use import digests_of
from serve.interpreter import hand_over_soon, spare_what_stays
from serve.ledger import RayLedger
from serve.quota_desk import QuotaDesk
from serve.reconciler import Parts, Reconciler
from serve.replica_metrics import RaySink
from serve.rollout_metrics import RolloutMetrics
from serve.trust import rule_of
from serve.webhook import Deliveries

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.quota.messages import Grant
    from models.quota.messages import Report as QuotaReport
    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report
    from models.rollout.order import Order
    from serve.settings import Settings
    from serve.webhook import Delivery

_log = logging.getLogger(__name__)

NAMESPACE: Final = "steelyard"
REPLICA_NAMESPACE: Final = "serve"
"""Ray namespace in which Serve names its replicas."""
ROLLBACK_WAIT_S: Final = 20.0
DEPLOYMENT: Final = "detector"
DISK_THREADS: Final = 4
REFRESH_S: Final = 1.0
"""Time between two reports of counters and gauges (seconds)."""


class RolloutActor:
    """Reconciles every model of one deployment; see ``serve/reconciler.py``. Methods are called through its handle."""

    def __init__(self, settings: Settings, deployment: str) -> None:
        """Begin a new life: claim an incarnation in the ledger, then recover each model. Runs on the actor's loop."""
        hand_over_soon()
        registry = MlflowRegistry(settings.tracking_uri, artifact_root=None)
        self._ledger = RayLedger(deployment)
        self._faults = FaultPoints(allowed=settings.allow_fault_injection)
        self._cache = ReleaseCache(settings.cache)
        registry_thread = _threads(registry_threads(len(settings.models)), "registry")
        thread = _threads(DISK_THREADS, "disk")
        self._thread = thread
        self._fingerprint = fingerprint(settings)
        self._store = CommittedStore(settings.root)
        self._sink = RaySink("rollout")
        self._metrics = RolloutMetrics(self._sink)
        self._pruning: set[asyncio.Task[None]] = set()
        self._depot = Depot(
            registry,
            self._cache,
            rule=rule_of(settings),
            share=ray.put,
            in_thread=thread,
            in_registry_thread=registry_thread,
            faults=self._faults,
        )
        parts = Parts(
            registry=registry,
            depot=self._depot,
            store=self._store,
            ledger=self._ledger,
            audit=Audit(settings.root / "audit"),
            faults=self._faults,
            names=lambda: live_replicas(actor_name(deployment)),
            in_thread=thread,
            in_registry_thread=registry_thread,
            depose=lambda: os._exit(1),
            tidy=self._tidy,
            timing=Timing(
                hold_deadline_s=settings.hold_deadline_s,
                isolation_s=settings.strict_isolation_s,
                prepare_timeout_s=settings.prepare_timeout_s + 10.0,
                latency_factor=settings.latency_factor,
                trial=TrialLimits(least_images=settings.trial_images),
                probation=ProbationLimits(window_s=settings.probation_s, least_images=settings.trial_images),
            ),
            poll_interval_s=settings.poll_interval_s,
            prepare_timeout_s=settings.prepare_timeout_s,
            quality_tolerance=settings.quality_tolerance,
            metrics=self._metrics,
        )
        self._models = {model: Reconciler(model, parts) for model in settings.models}
        # The cache does not know of which model a release is: each model's share counts.
        self._rule = Rule(settings.keep_versions * len(settings.models), settings.keep_days)
        self._deliveries = Deliveries()
        self._quota = QuotaDesk(names=parts.names, in_thread=thread, replicas=self._replicas)
        self._spared = False
        self._begun = asyncio.Event()
        self._birth = asyncio.get_running_loop().create_task(self._begin())
        self._reports = asyncio.get_running_loop().create_task(self._keep_reporting())

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

    async def _keep_reporting(self) -> None:
        while True:
            try:
                for each in self._models.values():
                    each.observe()
                self._metrics.refresh()
                self._sink.refresh()
            except Exception:  # noqa: BLE001 - metrics that ended in silence would look like a rollout that did
                _log.exception("the rollout's metrics could not be reported")
            await asyncio.sleep(REFRESH_S)

    async def ping(self) -> bool:
        """Return True when the actor knows the state of its models, False after some seconds where it does not yet."""
        try:
            await asyncio.wait_for(self._begun.wait(), 10.0)
        except TimeoutError:
            return False
        return True

    async def fingerprint(self) -> str:
        """Return the fingerprint of the settings that this actor works with."""
        return self._fingerprint

    async def next(self, model: str, report: Report) -> PollReply:
        """Take a replica's report; return what it should do, after some seconds at most."""
        return await (await self._model(model)).next(report)

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """Return what the starting ``replica`` must load."""
        return await (await self._model(model)).join(replica)

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Admit a replica that has loaded ``generation``, or hear why it could not."""
        return await (await self._model(model)).admit(replica, generation, failure)

    async def leave(self, model: str, replica: str) -> None:
        """Forget a replica that can start no batch any more."""
        (await self._model(model)).leave(replica)

    async def files(self, model: str, version: str, digest: str) -> list[Any]:
        """Return the object reference of a release's files, in a list so that Ray hands it on unopened."""
        return [await (await self._model(model)).files(version, digest)]

    async def signature(self, model: str, version: str, digest: str) -> str:
        """Return the signature under which the version was let in, "" for none."""
        return await (await self._model(model)).signature(version, digest)

    async def quota(self, report: QuotaReport) -> Grant:
        """Take what a replica reports of its limited keys; return what it may let in. Needs no ledger."""
        return self._quota.take(report)

    async def promote(
        self, model: str, version: str, reason: str = "promote", who: str = "operator", order: Order = PLAIN
    ) -> dict[str, Any]:
        """Make ``version`` the desired one and begin at once; return the status."""
        found = await self._model(model)
        await found.promote(version, reason, who, order)
        return dict(found.status())

    async def rollback(self, model: str, who: str = "operator") -> dict[str, Any]:
        """Bring back what served before; return the status when it serves, or after some seconds."""
        found = await self._model(model)
        await found.roll_back(ROLLBACK_WAIT_S, who)
        return dict(found.status())

    async def hint(self, model: str, delivery: Delivery | None = None) -> bool:
        """Read the alias soon; return False, and do nothing, where ``delivery`` was taken before."""
        found = await self._model(model)
        if delivery is not None and not self._deliveries.take(delivery, time.time()):
            return False
        found.hint()
        return True

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

    def _replicas(self) -> int:
        return max(model.replicas for model in self._models.values())

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
        if not self._spared:
            # The registry's client came last, and took longest.
            self._spared = True
            spare_what_stays()
        keep = frozenset[str]().union(*(model.wanted for model in self._models.values()))
        self._depot.keep_only(keep)
        task = asyncio.get_running_loop().create_task(self._prune(keep))
        self._pruning.add(task)
        task.add_done_callback(self._pruning.discard)

    async def _prune(self, keep: frozenset[str]) -> None:
        try:
            await self._thread(prune, self._cache, self._store, keep, self._rule)
        except OSError as error:
            _log.warning("old releases could not be removed from the cache: %s", error)


def prune(
    cache: ReleaseCache,
    store: CommittedStore,
    keep: frozenset[str],
    rule: Rule = NOTHING_BESIDE,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Drop from the cache what no model needs, served now or not, and ``rule`` does not keep; blocks.

    keep: digests in use that the durable records need not know.
    """
    in_use = keep | {digest for record in store.records() for digest in digests_of(record)}
    kept = (fate.name for fate in fates(cache.stored(), dict.fromkeys(in_use, "is in use"), rule, now()) if fate.kept)
    cache.prune(frozenset(kept))


def registry_threads(models: int) -> int:
    """Return how many threads call the registry: each model may occupy two, with its alias and with a write."""
    return MOST_DOWNLOADS + 2 * models


def fingerprint(settings: Settings) -> str:
    """Return a digest of the settings that the actor works with: it changes where an actor must be made anew."""
    used = {
        "models": sorted(settings.models),
        "root": str(settings.root),
        "tracking_uri": settings.tracking_uri,
        "allow_fault_injection": settings.allow_fault_injection,
        "hold_deadline_s": settings.hold_deadline_s,
        "strict_isolation_s": settings.strict_isolation_s,
        "prepare_timeout_s": settings.prepare_timeout_s,
        "poll_interval_s": settings.poll_interval_s,
        "quality_tolerance": settings.quality_tolerance,
        "latency_factor": settings.latency_factor,
        "trial_images": settings.trial_images,
        "probation_s": settings.probation_s,
        "keep_versions": settings.keep_versions,
        "keep_days": settings.keep_days,
        "keys": str(settings.keys_folder),
        "require_signed": settings.require_signed,
    }
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def actor_name(deployment: str = DEPLOYMENT) -> str:
    """Return the name under which Ray knows the actor, in ``NAMESPACE``."""
    return f"steelyard-rollout-{deployment}"


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


def _threads(number: int, name: str) -> Callable[..., Any]:
    """Return what runs a blocking call on one of so many threads; they give way to replicas on this machine."""
    pool = ThreadPoolExecutor(number, thread_name_prefix=name, initializer=give_way)

    async def run(call: Callable[..., Any], *args: object, **named: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, functools.partial(call, *args, **named))

    return run
