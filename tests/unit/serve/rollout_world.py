"""A whole rollout in one process: an actor that can crash, members with fake engines, registry, ledger and disk."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from release_files import release_files

from models.rollout import ledger as rules
from models.rollout.ledger import FakeLedger
from models.rollout.state import Timing
from models.weights import registry as tags
from models.weights.cache import CommittedStore, ReleaseCache
from models.weights.fake_registry import FakeRegistry
from serve.audit import Audit
from serve.depot import Depot
from serve.fake_engine import FakeEngine
from serve.faults import FaultPoints
from serve.member import Member
from serve.prometheus import PrometheusSink
from serve.reconciler import Parts, Reconciler
from serve.rollout_actor import prune
from serve.rollout_metrics import RolloutMetrics
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.errors import ReleaseFaultError, ReleaseRejectedError
    from models.rollout.messages import Admission, Failure, Join, PollReply, Refused, Report

MODEL = "m"


def _register(registry: FakeRegistry, folder: Path, number: int) -> str:
    digest, files = release_files(number, MODEL)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    labels = {tags.DIGEST_TAG: digest, tags.SOURCE_TAG: f"{number}", tags.PROMOTABLE_TAG: "true"}
    registry.create_version(MODEL, folder, tags=labels, metrics={})
    return digest


class Fleet:
    """One service: a registry with versions 1 to 3, version 1 promoted; an actor; members with fake engines."""

    def __init__(self, folder: Path) -> None:
        """Prepare everything; nothing runs yet."""
        self.registry = FakeRegistry()
        self.digests = {str(n): _register(self.registry, folder / f"v{n}", n) for n in (1, 2, 3)}
        self.registry.promote(MODEL, "1", promotion="first", reason="test")
        self.settings = Settings(home=folder / "home", models=(MODEL,), poll_interval_s=1.0, allow_fault_injection=True)
        self.cache = ReleaseCache(self.settings.cache)
        self.depot: Depot | None = None
        self.ledger = FakeLedger()
        self.faults = FaultPoints(allowed=True)
        self.names: set[str] = set()
        self.members: dict[str, Member] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.loops: dict[str, asyncio.Task[None]] = {}
        self.timing = Timing()
        self.sink = PrometheusSink()
        self.metrics: RolloutMetrics | None = None
        self.reconciler: Reconciler | None = None
        self.lives = 0
        self.deposed = 0

    async def begin(self) -> None:
        """Begin a life of the actor."""
        self.lives += 1
        loop = asyncio.get_running_loop()
        self.depot = depot = Depot(
            self.registry,
            self.cache,
            rule=rule_of(self.settings),
            share=dict,
            in_thread=_at_once,
            in_registry_thread=_at_once,
            faults=self.faults,
        )
        self.sink = PrometheusSink()
        self.metrics = RolloutMetrics(self.sink, clock=loop.time)
        self.reconciler = Reconciler(
            MODEL,
            Parts(
                registry=self.registry,
                depot=depot,
                store=CommittedStore(self.settings.root),
                ledger=self.ledger,
                audit=Audit(self.settings.root / "audit"),
                faults=self.faults,
                names=lambda: frozenset(self.names),
                in_thread=_at_once,
                in_registry_thread=_at_once,
                depose=self._depose,
                tidy=self._tidy,
                timing=self.timing,
                poll_interval_s=1.0,
                prepare_timeout_s=60.0,
                metrics=self.metrics,
                clock=loop.time,
            ),
        )
        number = await rules.run(rules.claim_incarnation(f"life {self.lives}"), self.ledger)
        await self.reconciler.begin(number)

    async def crash(self) -> None:
        """End the actor as a kill would; its callers get errors until the next ``begin``."""
        dead, self.reconciler = self.reconciler, None
        assert dead is not None
        await dead.stop()

    async def start(self, name: str, **refuse: ReleaseRejectedError | ReleaseFaultError) -> FakeEngine:
        """Start a replica; raises what its start raises. refuse: version -> the error that preparing it raises."""
        engine = FakeEngine({self.digests[version[1:]]: error for version, error in refuse.items()})
        clock = asyncio.get_running_loop().time
        member = Member(
            MODEL, name, engine, self, self.ledger, ReleaseCache(self.settings.cache), self.settings, clock=clock
        )
        await member.start()
        self.members[name], self.engines[name] = member, engine
        self.names.add(name)
        self.loops[name] = asyncio.create_task(member.run())
        return engine

    async def kill(self, name: str) -> None:
        """End a replica as a kill would."""
        self.loops[name].cancel()
        self.names.discard(name)
        del self.members[name], self.engines[name]

    async def until(self, true: Callable[[], bool], within_s: float = 60.0) -> None:
        """Wait until ``true``, in the loop's time."""
        async with asyncio.timeout(within_s):
            while not true():  # noqa: ASYNC110 - time flies here, and what changes is everywhere
                await asyncio.sleep(0.01)

    def all_on(self, version: str) -> Callable[[], bool]:
        """Return the question whether every replica answers with ``version`` and the actor knows it."""

        def true() -> bool:
            wanted = self.digests[version]
            there = [e.answering and e.active is not None and e.active[0] == wanted for e in self.engines.values()]
            return self.reconciler is not None and all(there) and self.actor.status()["serving"] == version

        return true

    @property
    def actor(self) -> Reconciler:
        """Return the actor; raises where it is dead."""
        if self.reconciler is None:
            msg = "the actor is dead"
            raise ConnectionError(msg)
        return self.reconciler

    def audit(self) -> list[dict[str, Any]]:
        """Return the audit, oldest first."""
        path = self.settings.root / "audit" / "rollout.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _tidy(self) -> None:
        assert self.depot is not None
        self.depot.keep_only(self.actor.wanted)
        prune(self.cache, CommittedStore(self.settings.root), self.actor.wanted)

    def _depose(self) -> None:
        self.deposed += 1

    # ActorPort

    async def next(self, model: str, report: Report) -> PollReply:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.next(report)

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.join(replica)

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.admit(replica, generation, failure)

    async def leave(self, model: str, replica: str) -> None:
        """See ActorPort."""
        assert model == MODEL
        self.actor.leave(replica)

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, Any]:
        """See ActorPort."""
        assert model == MODEL
        files: Mapping[str, Any] = await self.actor.files(version, digest)
        return files

    async def signature(self, model: str, version: str, digest: str) -> str:
        """See ActorPort."""
        assert model == MODEL
        return await self.actor.signature(version, digest)


async def _at_once(call: Callable[..., Any], *args: object, **named: object) -> Any:
    return call(*args, **named)
