"""The one deployment: a replica is HTTP ingress and engines in one process, so an image takes one hop.

Everything that a replica does is in ``serve/replica.py``, without Ray; here it is put together and given to Ray.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
import ray
from ray import serve

from models.engine.backends.select import select_backend
from models.engine.decode import MIB
from models.engine.decode_budget import DecodeBudget
from models.engine.engine import Engine, EngineSettings
from models.engine.engine_settings import DOUBT
from models.errors import BackendError
from models.quota.share import QuotaShare
from models.scaling.work import WorkMeter
from models.weights.cache import ReleaseCache
from models.weights.golden import check_sight
from models.weights.mlflow_registry import MlflowRegistry
from serve.access import AccessKey, Scope
from serve.access_file import AccessFile
from serve.access_log import AccessLog
from serve.autoscaling import START, Workload
from serve.ingress import create_app
from serve.interpreter import hand_over_soon, spare_what_stays
from serve.ledger import RayLedger
from serve.logs import setup_logging
from serve.member import Member
from serve.middleware import GRACE_S
from serve.quota import QuotaLimits
from serve.replica import IdleClock, Replica
from serve.replica_metrics import NodeExposition, RaySink
from serve.rollout import connect
from serve.rollout_actor import DEPLOYMENT
from serve.sampling import Sampler
from serve.settings import Settings, without_secrets
from serve.telemetry import EngineMetrics, EngineObserver, HttpMetrics
from serve.trust import VouchedVersions, check_trust, rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from fastapi import FastAPI

    from models.types import Answer
    from serve.instruments import MetricsSink
    from serve.span_export import SpanExport
    from serve.tracing import Tracing

NAME: Final = DEPLOYMENT
HEALTH_PERIOD_S: Final = 5.0
HEALTH_TIMEOUT_S: Final = 20.0
DRAIN_LOOP_S: Final = 0.1
MOST_IMPORT_S: Final = 10.0
"""Longest time that a replica's process takes before its constructor begins (seconds)."""
RESERVE_MB: Final = 320
"""Memory (MiB) of a replica's budget that neither releases nor warm shapes may take: images in flight, what the
allocator keeps, and by how much the estimates fell short after a flood and two swaps under load."""
PROCESSORS: Final = "processors.lock"
"""File in this machine's cache by which its replicas keep off each other's processors."""
DOUBTFUL_PART: Final = 0.75
"""The part of what the latency gate allows above which a candidate's pace is looked at again: below, a further look,
for which the rollout waits, seldom changes what the gate says. Where it allows less than ``DOUBT``, all that it would
refuse is looked at again."""


class _Observer(EngineObserver):
    """Counts an engine's events and work, and keeps its idle clock."""

    def __init__(self, metrics: EngineMetrics, model: str, idle: IdleClock) -> None:
        super().__init__(metrics, model)
        self._idle = idle
        self.work = WorkMeter()

    def answered(self, answer: Answer) -> None:
        """Count the answer; the engine has just seen."""
        self._idle.touch()
        self.work.answered()
        super().answered(answer)

    def refused(self, code: str) -> None:
        """Count an image that was not answered."""
        self.work.not_answered(code)
        super().refused(code)


class Detector:
    """What Ray Serve makes one of in every replica."""

    async def __init__(  # type: ignore[misc]
        self, settings: dict[str, Any], threads: int, logs: str | None, local: tuple[str, str] | None = None
    ) -> None:
        """Serve the committed release of every model before returning.

        settings: those of the service but for the admin key, which each process reads from its own environment.
        threads: CPU threads of all libraries together, >= 1. logs: folder of the log file; None logs to stderr.
        local: id and SHA-256 (hex) of a key with every scope, by which the launcher's own commands get in.
        """
        begun = time.time()
        hand_over_soon()
        keep_off_the_network()
        self._settings = Settings(**settings)
        self._stop_logging = _start_logging(self._settings.log_level, logs)
        name = serve.get_replica_context().replica_id.unique_id
        self._sink = RaySink(name)
        self._spans, self._tracing = start_tracing(self._settings, self._sink, name)
        own = () if local is None else (AccessKey(local[0], local[0], bytes.fromhex(local[1]), frozenset(Scope), 0.0),)
        self._access = AccessFile.of(self._settings, local=own, sink=self._sink)
        await asyncio.to_thread(self._access.load)
        upkeep = {"the watch of the access file": self._access.watch}
        if self._spans is not None:
            upkeep["the reports of spans"] = self._spans.keep_reporting
        self._replica, self._limits = await _build(self._settings, threads, self._sink, upkeep=upkeep)
        spare_what_stays()
        await self._replica.start()
        self._start_s = start_seconds(psutil.Process().create_time(), begun, time.time())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; Ray Serve calls it once, after the constructor."""
        return create_app(
            self._replica,
            self._settings,
            access=self._access,
            limits=self._limits,
            metrics=HttpMetrics(self._sink),
            tracing=self._tracing,
            access_log=AccessLog(
                self._settings.access_log, slow_s=self._settings.latency_objective_s, now=time.monotonic()
            ),
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell the autoscaling policy what this replica holds; Ray Serve asks once a second where it is on."""
        return self._replica.workload() | {START: self._start_s}

    async def check_health(self) -> None:
        """Tell Ray Serve, by raising, that this replica must be replaced."""
        reason = self._replica.failure()
        if reason is not None:
            raise BackendError(reason)

    async def __del__(self) -> None:
        """Stop; Ray Serve calls it once the last request is answered."""
        replica = getattr(self, "_replica", None)
        if replica is not None:
            await replica.stop()
            await self._limits.close()
            if self._spans is not None:
                await self._spans.close()
            self._stop_logging()


detector: Any = serve.deployment(name=NAME)(serve.ingress()(Detector))
"""The deployment; ``serve/app.py`` gives it its options."""


async def _build(
    settings: Settings,
    threads: int,
    sink: RaySink,
    *,
    upkeep: Mapping[str, Callable[[], Coroutine[Any, Any, None]]],
) -> tuple[Replica, QuotaLimits]:
    check_trust(settings)
    # The actor needs no secrets, and Ray keeps what it was made with.
    rollout = await connect(without_secrets(settings), NAME)
    metrics = EngineMetrics(sink)
    cache = ReleaseCache(settings.cache)
    name = ray.get_runtime_context().get_actor_name()
    limits = engine_settings(settings, threads, taken=psutil.Process().memory_info().rss)
    idle = {model: IdleClock(time.monotonic) for model in settings.models}
    observers = {model: _Observer(metrics, model, clock) for model, clock in idle.items()}
    budget = DecodeBudget(limits.decode_budget_mb * MIB)
    engines = {model: make_engine(settings, limits, observer, budget) for model, observer in observers.items()}
    members = {
        model: Member(model, name, engine, rollout, RayLedger(NAME), cache, settings)
        for model, engine in engines.items()
    }

    def refresh() -> None:
        for model, engine in engines.items():
            observers[model].sampled(engine.queued, engine.running, engine.leases, engine.lanes)
        sink.refresh()

    share = QuotaShare(
        name, replicas=settings.max_replicas or settings.replicas, longest_s=settings.request_timeout_s + GRACE_S
    )
    replica = Replica(
        engines,
        members,
        idle,
        fleet=rollout,
        registry=VouchedVersions(MlflowRegistry(settings.tracking_uri), rule_of(settings)),
        exposition=NodeExposition().read,
        refresh=refresh,
        idle_check_s=settings.idle_check_s,
        upkeep=upkeep,
        workload=Workload(engines, {model: each.work for model, each in observers.items()}, time.monotonic).tell,
    )
    return replica, QuotaLimits(share, rollout.quota, sink)


def start_seconds(born: float, begun: float, ready: float) -> float:
    """Return how long a replica took to start, from three times: its process, its constructor, its first answer.

    Ray may have kept the process at hand before it became a replica, so no more than MOST_IMPORT_S of that count.
    """
    return max(ready - begun, 0.0) + min(max(begun - born, 0.0), MOST_IMPORT_S)


def engine_settings(settings: Settings, threads: int, *, taken: int) -> EngineSettings:
    """Return the knobs of each engine of a replica that may use ``threads`` >= 1 CPU threads in all.

    ``taken`` is the memory (bytes) that the process takes before it loads anything; the engines share what is left of
    the budget, but for what images in flight and the allocator's leftovers take.

    The models share threads and memory equally, with one thread each at least: all of them busy do not oversubscribe
    the cores, and a plan that was measured alone holds then too. The price is that a model which is busy alone leaves
    the others' threads idle; where that matters, serve it by a service of its own.
    """
    models = len(settings.models)
    return EngineSettings(
        lanes=settings.lanes,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        threads=max(1, threads // models),
        max_bytes=settings.max_body_bytes,
        max_pixels=settings.max_pixels,
        max_side=settings.max_side,
        memory_budget_mb=max(1, (settings.memory_budget_mb - RESERVE_MB - taken // MIB) // models),
        decode_budget_mb=settings.decode_budget_mb,
        # What loads onto a GPU takes minutes and leaves the processors to those that answer.
        processors=None if settings.gpus > 0 else settings.cache / PROCESSORS,
        doubt=min(settings.latency_factor, max(DOUBT, DOUBTFUL_PART * settings.latency_factor)),
    )


def make_engine(
    settings: Settings, limits: EngineSettings, observer: EngineObserver, budget: DecodeBudget | None = None
) -> Engine:
    """Return an engine whose runtime uses no more threads than ``limits`` allow, decoding within ``budget``."""
    backend = select_backend(
        settings.backend,
        precision=settings.precision,
        threads=limits.threads,
        gpu=settings.gpus > 0,
        gpu_share=settings.gpus or 1.0,
        engines=settings.cache / "engines",
        fake_service_s=settings.fake_service_s,
    )
    return Engine(backend, limits, sight_test=check_sight, observer=observer, budget=budget)


def start_tracing(settings: Settings, sink: MetricsSink, replica: str) -> tuple[SpanExport | None, Tracing | None]:
    """Return what exports spans and what makes them, both None where no collector is set. replica: its name."""
    if settings.trace_endpoint is None:
        return None, None
    # Loaded only where tracing is on.
    from serve.span_export import SpanExport, otlp_exporter  # noqa: PLC0415
    from serve.tracing import Tracing  # noqa: PLC0415

    spans = SpanExport(otlp_exporter(settings.trace_endpoint), sink)
    sampler = Sampler(settings.trace_ratio, time.monotonic())
    return spans, Tracing(spans, sampler, replica=replica)


def _start_logging(level: str, logs: str | None) -> Any:
    if logs is None:
        return setup_logging(level)
    stream = (Path(logs) / f"replica-{os.getpid()}.log").open("a", encoding="utf-8", buffering=1)
    return setup_logging(level, stream)


def keep_off_the_network() -> None:
    """Bind the replica's server for calls between deployments to the node's address instead of every one.

    Ray 2.60 binds it to ``[::]``, without a setting and without authentication, and unpickles what it is sent. Its
    callers use the node's address, which on a machine of its own is loopback.
    """
    from ray.serve._private import replica  # noqa: PLC0415 - loaded in replicas only

    original = replica.add_port_to_grpc_server
    host = ray.util.get_node_ip_address()
    host = f"[{host}]" if ":" in host else host

    @functools.wraps(original)
    def add_port(server: Any, address: str) -> Any:
        return original(server, address.replace("[::]", host))

    replica.add_port_to_grpc_server = add_port
