"""Limits of keys in one replica: requests enter and leave, wait a moment for what others hold, and are refused.

Every decision is ``models/quota``'s; here are the waiting, the reports to the rollout actor, and the counting. Nothing
runs while no limited key is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from models.errors import QuotaExceededError
from models.quota.messages import Limit
from models.quota.share import ADMITTED
from serve.instruments import Metric
from serve.supervision import end_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.quota.messages import Grant, Report
    from models.quota.share import QuotaShare, Reason, Verdict
    from serve.access import AccessKey
    from serve.instruments import MetricsSink

_log = logging.getLogger(__name__)

WAIT_S: Final = 0.3
"""Longest wait of a request for a token or permit: who holds an idle one reports, and gives it back, within 0.2 s."""
ASK_S: Final = 0.25
"""Time in which the actor must answer a report; then the replica decides alone until it does (seconds)."""

QUOTA: Final = Metric(
    "steelyard_quota_requests_total",
    "Requests with a limited key: admitted, or refused for its rate or concurrency.",
    ("key", "outcome"),
)
ALONE: Final = Metric(
    "steelyard_quota_fallback",
    "1 while the replica decides by its part of each limit, since the rollout actor does not answer.",
    (),
)


class QuotaLimits:
    """Fulfils ``serve.access.Limits``. Its methods belong to one event loop's thread."""

    def __init__(
        self,
        share: QuotaShare,
        ask: Callable[[Report], Awaitable[Grant]],
        sink: MetricsSink,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing. ask: hands a report to the service's book; may raise anything. clock: monotonic seconds."""
        self._share, self._ask, self._clock = share, ask, clock
        self._outcomes = sink.counter(QUOTA)
        self._alone = sink.gauge(ALONE)
        self._alone.set({}, 0.0)
        self._queues: dict[str, dict[asyncio.Future[None], Limit]] = {}
        self._hurry = asyncio.Event()
        self._reports: asyncio.Task[None] | None = None

    async def enter(self, key: AccessKey) -> None:
        """Let a request of ``key`` in, after WAIT_S at most. Raises QuotaExceededError; no ``leave`` then."""
        if key.rate_per_s is None and key.concurrency is None:
            return
        limit = Limit(key.rate_per_s, key.concurrency)
        verdict = self._share.admit(key.key_id, limit, self._clock())
        if verdict.wait:
            verdict = await self._wait(key.key_id, limit, verdict)
        else:
            self._keep_reporting()
        self._outcomes.inc({"key": key.key_id, "outcome": verdict.reason or "admitted"})
        if verdict.reason is not None:
            raise QuotaExceededError(_message(limit, verdict.reason), retry_after_s=verdict.retry_s)

    def leave(self, key: AccessKey) -> None:
        """Note that a request that was let in has ended."""
        if key.rate_per_s is not None or key.concurrency is not None:
            self._leave(key.key_id)

    async def close(self) -> None:
        """End the reports; what this replica holds comes back to the others by itself."""
        if self._reports is not None:
            await end_tasks([self._reports])

    # Waiting

    async def _wait(self, key_id: str, limit: Limit, verdict: Verdict) -> Verdict:
        queue = self._queues.setdefault(key_id, {})
        turn = asyncio.get_running_loop().create_future()
        queue[turn] = limit
        self._share.wait(key_id, 1)
        if verdict.ask:
            self._hurry.set()
        self._keep_reporting()
        try:
            async with asyncio.timeout(WAIT_S):
                await turn
        except TimeoutError:
            if not _came(turn):
                self._give_up(key_id, turn)
                return self._share.admit(key_id, limit, self._clock(), again=True)
        except BaseException:
            # Its client is gone, and it may have been let in the moment before.
            if _came(turn):
                self._leave(key_id)
            else:
                self._give_up(key_id, turn)
            raise
        return ADMITTED

    def _give_up(self, key_id: str, turn: asyncio.Future[None]) -> None:
        del self._queues[key_id][turn]
        self._share.wait(key_id, -1)

    def _leave(self, key_id: str) -> None:
        idle = self._share.leave(key_id)
        self._call_in(key_id)
        if idle:
            self._hurry.set()

    def _call_in(self, key_id: str) -> None:
        queue = self._queues.get(key_id, {})
        for turn, limit in [*queue.items()]:
            if turn.done():
                continue  # it is cancelled, and takes itself out
            if self._share.admit(key_id, limit, self._clock(), again=True).reason is not None:
                break
            del queue[turn]
            self._share.wait(key_id, -1)
            turn.set_result(None)

    # Reports

    def _keep_reporting(self) -> None:
        if self._reports is None or self._reports.done():
            self._reports = asyncio.create_task(self._report_until_idle(), name="the quota reports")

    async def _report_until_idle(self) -> None:
        while not self._share.idle:
            due_s = self._share.due_s(self._clock(), hurry=self._hurry.is_set())
            if due_s > 0.0:
                await self._pause(due_s)
                continue
            self._hurry.clear()
            await self._report()
            for key_id in [*self._queues]:
                self._call_in(key_id)
                if not self._queues[key_id]:
                    del self._queues[key_id]

    async def _pause(self, seconds: float) -> None:
        if self._hurry.is_set():
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _report(self) -> None:
        before = self._share.unanswered
        try:
            report = self._share.report(self._clock())
            async with asyncio.timeout(ASK_S):
                grant = await self._ask(report)
            self._share.accept(grant, self._clock())
        except Exception as error:  # noqa: BLE001 - whatever failed, this replica goes on by its own part of the limits
            self._share.fail(self._clock())
            if not before:
                _log.warning("the limits of keys are kept by this replica alone until the rollout answers: %s", error)
        self._alone.set({}, float(self._share.unanswered))


def _came(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()


def _message(limit: Limit, reason: Reason) -> str:
    if reason == "rate":
        return (
            f"This key's limit of {limit.rate_per_s:g} requests a second is reached; "
            "send again after the seconds in Retry-After, and more slowly"
        )
    return (
        f"This key's limit of {limit.concurrency} requests at once is reached; "
        "wait for an answer before you send more, or for the seconds in Retry-After"
    )
