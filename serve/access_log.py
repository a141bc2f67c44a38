"""One line a request, for those that are worth one: who asked, what answered, how long each stage took."""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal

from models.types import Answer
from serve.context import find_context, outcomes_of
from serve.guard import OPEN, path_of
from serve.sampling import Allowance

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from serve.tracing import Trace

AccessMode = Literal["errors", "sampled", "all"]
"""``errors``: those answered with 5xx, and slow ones. ``sampled``: also one of EVERY, and those that are traced."""
EVERY: Final = 100
SLOW_A_SECOND: Final = 5.0
"""Slow requests a second that get a line: where everything is slow, some of them tell it."""
SERVER_ERROR: Final = 500
UNTOLD: Final = OPEN | {"/metrics"}
"""Paths that machines ask for every few seconds: no line, no trace."""

_log = logging.getLogger(__name__)


class AccessLog:
    """Writes the lines of one process."""

    def __init__(self, mode: AccessMode, *, slow_s: float, now: float) -> None:
        """Take requests of ``slow_s`` (seconds) and more for slow. now: seconds, as in ``ended``."""
        self._all = mode == "all"
        self._sampled = mode == "sampled"
        self._slow_s = slow_s
        self._slow = Allowance(SLOW_A_SECOND, SLOW_A_SECOND, now)
        self._numbers = count()

    def ended(
        self,
        scope: MutableMapping[str, Any],
        request_id: str,
        route: str,
        status: int,
        *,
        begun: float,
        now: float,
        trace: Trace | None,
    ) -> None:
        """Write the line of a request that ended at ``now``, where it is worth one.

        route: the path's template. status: the answer's. begun, now: seconds.
        """
        failed = status >= SERVER_ERROR
        if not (failed or self._wanted(now - begun, now, traced=trace is not None)):
            return
        level = logging.ERROR if failed else logging.INFO
        if not _log.isEnabledFor(level) or path_of(scope) in UNTOLD:
            return
        fields = {"request_id": request_id, "route": route, "status": status, "ms": round(1e3 * (now - begun), 3)}
        _log.log(level, "request", extra=fields | _key(scope) | _answered(scope) | _traced(trace))

    def _wanted(self, seconds: float, now: float, *, traced: bool) -> bool:
        if self._all:
            return True
        if self._sampled and (traced or next(self._numbers) % EVERY == 0):
            return True
        return seconds >= self._slow_s and self._slow.take(now)


def _key(scope: MutableMapping[str, Any]) -> dict[str, object]:
    context = find_context(scope)
    return {} if context is None or context.key_id is None else {"key_id": context.key_id}


def _answered(scope: MutableMapping[str, Any]) -> dict[str, object]:
    outcomes = outcomes_of(scope)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    if not answers:
        return {"images": len(outcomes)} if outcomes else {}
    release, times = answers[-1].release, [answer.timings for answer in answers]
    return {
        "images": len(outcomes),
        "model": release.model,
        "version": release.version,
        "digest": release.digest,
        # Images of one request run at the same time, so each stage shows its slowest image.
        "decode_ms": round(max(each.decode_ms for each in times), 3),
        "queue_ms": round(max(each.queue_ms for each in times), 3),
        "infer_ms": round(max(each.infer_ms for each in times), 3),
        "post_ms": round(max(each.post_ms for each in times), 3),
    }


def _traced(trace: Trace | None) -> dict[str, object]:
    return {} if trace is None else {"trace_id": trace.trace_id}
