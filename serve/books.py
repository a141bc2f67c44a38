"""What the rollout writes down for one model: the durable record, the audit, and what serves, in the registry."""

from __future__ import annotations

import asyncio
import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from models.errors import ReleaseError, SteelyardError
from models.rollout import policy
from models.rollout.messages import Target
from models.rollout.state import Recovered
from models.weights.cache import Committed
from serve.attempts import Attempts
from serve.outbox import SETTLE_S, Letter, Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from models.rollout.ledger import Recovery
    from models.rollout.messages import Attempt
    from models.rollout.state import State
    from models.weights.cache import CommittedStore
    from models.weights.registry import Registry
    from models.weights.rollout_runs import RolloutRun
    from serve.audit import Audit
    from serve.rollout_metrics import RolloutObserver

_log = logging.getLogger(__name__)

MOST_ENTRIES: Final = 1024
SAVE_WAIT_S: Final = 5.0


class Books:
    """Keeps the books off the critical path; only ``saved`` is ever waited for.

    The disk and the registry have a queue each: a registry that is away delays no line of the audit.
    """

    def __init__(
        self,
        model: str,
        *,
        now: Callable[[], State],
        store: CommittedStore,
        audit: Audit,
        registry: Registry,
        in_thread: Callable[..., Awaitable[Any]],
        in_registry_thread: Callable[..., Awaitable[Any]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        observer: RolloutObserver | None = None,
    ) -> None:
        """Start with nothing to write. now: returns the model's state; the two runners take a blocking call each."""
        self._model, self._now = model, now
        self._store, self._audit, self._registry = store, audit, registry
        self._in_thread, self._sleep, self._observer = in_thread, sleep, observer
        self._entries: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(MOST_ENTRIES)
        self._disk = asyncio.Lock()
        self._saving: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self._attempts = Attempts(lambda: uuid4().hex)
        self._outbox = Outbox(in_thread=in_registry_thread, sleep=sleep)

    def save(self) -> None:
        """Begin to write the durable record of what is committed, pinned and refused for good now."""
        task = asyncio.create_task(self._save())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    def save_soon(self) -> None:
        """Do so, and write lines of the audit, once the replicas have heard of a commit: the ledger has it."""
        task = asyncio.create_task(self._save_soon())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def saved(self) -> None:
        """Wait until every ``save`` has ended, some seconds at most."""
        if self._saving:
            await asyncio.wait(set(self._saving), timeout=SAVE_WAIT_S)

    def write(
        self,
        action: str,
        before: Target | None,
        after: Target | None,
        *,
        result: str,
        reason: str = "",
        who: str = "rollout",
        generation: int = 0,
        measured: Mapping[str, float] | None = None,
    ) -> None:
        """Add a line to the audit, and a run to the registry where it ends a rollout.

        measured: name -> number, what the result rests on.
        """
        entry = self._audit.entry(
            self._model,
            action,
            before,
            after,
            result=result,
            reason=reason,
            who=who,
            generation=generation,
            measured=measured or {},
        )
        self._enter(lambda: self._in_thread(self._audit.append, entry.line()))
        state = self._now()
        rollout = self._attempts.take(entry, state.verdicts if state.last == after else ())
        if rollout is not None:
            self._record_rollout(rollout)

    def record_serving(self, attempt: Attempt) -> None:
        """Tell the registry what serves, soon after it can be reached."""
        self._outbox.post(
            Letter(
                f"that version {attempt.target.version} of {self._model} serves",
                functools.partial(self._record_serving, attempt),
                sent=lambda: None,
                lost=lambda: None,
            )
        )

    async def run(self) -> None:
        """Write what is entered, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._outbox.run())

    async def _keep(self) -> None:
        while True:
            entry = await self._entries.get()
            if self._settling:
                await asyncio.wait(set(self._settling))
            try:
                await entry()
            except (OSError, SteelyardError, TimeoutError) as error:
                _log.warning("an entry in the books of %s is lost: %s", self._model, error)

    async def _save_soon(self) -> None:
        await self._sleep(SETTLE_S)
        self.save()

    async def _save(self) -> None:
        # The state is read inside the lock: of two saves under way, the later one writes the later state.
        async with self._disk:
            state = self._now()
            if state.committed is None:
                return
            target, previous = state.committed.target, state.committed.back
            record = Committed(
                model=self._model,
                generation=state.committed.generation,
                version=target.version,
                digest=target.digest,
                previous_version=previous.version if previous else None,
                previous_digest=previous.digest if previous else None,
                pin=policy.encode_pin(state.pin),
                promotion=target.promotion,
                rejections=policy.encode_rejections(state.rejections),
            )
            try:
                await self._in_thread(self._store.save, record)
            except (ReleaseError, OSError) as error:
                # The ledger holds the truth; only a restart of the whole service would miss this record.
                _log.warning("what serves of %s could not be recorded on disk: %s", self._model, error)

    def _record_serving(self, attempt: Attempt) -> None:
        target, committed = attempt.target, self._now().committed
        if committed is None or committed.generation != attempt.generation:
            return  # a later commit has told more
        self._registry.record_serving(
            self._model, generation=attempt.generation, version=target.version, digest=target.digest
        )

    def _record_rollout(self, run: RolloutRun) -> None:
        if self._observer is not None:
            self._observer.ended(run.result, (run.ended - run.begun).total_seconds())
        self._outbox.post(
            Letter(
                f"how version {run.version} of {self._model} was {run.result}",
                functools.partial(self._registry.record_rollout, run),
                sent=lambda: self._told("written"),
                lost=lambda: self._told("lost"),
            )
        )

    def _told(self, outcome: str) -> None:
        if self._observer is not None:
            self._observer.recorded(outcome)

    def _enter(self, entry: Callable[[], Awaitable[None]]) -> None:
        try:
            self._entries.put_nowait(entry)
        except asyncio.QueueFull:
            _log.warning("the disk is too slow: an entry in the books of %s is lost", self._model)


def recovered(incarnation: int, recovery: Recovery, record: Committed | None) -> Recovered:
    """Return what a new life of the actor begins with: the ledger, and the durable record of what served before."""
    event = Recovered(incarnation, recovery)
    if record is None:
        return event
    rejections = policy.decode_rejections(record.rejections)
    event = replace(event, pin=policy.decode_pin(record.pin), rejections=rejections)
    if recovery.committed is not None:
        return event
    # The cluster is new and the service is not: what it served last comes first.
    previous = None
    if record.previous_version is not None and record.previous_digest is not None:
        previous = Target(record.previous_version, record.previous_digest, "")
    return replace(
        event,
        restored=Target(record.version, record.digest, record.promotion or ""),
        restored_previous=previous,
        restored_generation=record.generation,
    )
