"""Spans of sampled requests (OpenTelemetry): the request with its decode, queue, post and respond, and batches apart.

A batch belongs to several requests, so its infer span has a trace of its own, with a link to each of them, and each of
them one to it. Spans are made from the moments that the engine keeps anyway; a request that is not sampled costs one
decision. Nothing of what a client sends is in them but its trace id and its request id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import SpanProcessor

    from models.types import Answer, DetectOptions, Release, RequestContext, Span
    from serve.sampling import Sampler
    from serve.service import Detector

SERVICE: Final = "steelyard"
MOST_LINKS: Final = 256
"""Links of one span: as many as images may share a batch, or a request may hold."""
MOST_DRIFT_NS: Final = 1_000_000
"""By how much the times of two requests' spans may disagree, at most, before their offset is taken anew."""
SERVER_ERROR: Final = 500
_NOWHERE: Final = Context()
"""No parent: not one either that a library left in the thread's own context."""

_log = logging.getLogger(__name__)


class Tracing:
    """Makes the spans of one process. Its methods belong to one event loop's thread, and never raise."""

    def __init__(
        self,
        processor: SpanProcessor,
        sampler: Sampler,
        *,
        replica: str,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Give the spans to ``processor``, whose ``on_end`` must return at once.

        replica: names this process. wall_ns: unix nanoseconds, which spans are told in. clock: seconds, that of the
        engines and of the edge.
        """
        resource = Resource(
            {"service.name": SERVICE, "service.version": version("steelyard"), "service.instance.id": replica}
        )
        limits = SpanLimits(max_links=MOST_LINKS)
        # The sampler has decided before a span is made; processes end their exports themselves.
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=limits)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer(SERVICE)
        self._sampler = sampler
        self._wall_ns = wall_ns
        self._clock = clock
        self._offset_ns = 0
        self._batches: dict[tuple[str, int], otel.Span] = {}
        self._told = False

    def begin(self, context: RequestContext, started: float) -> Trace | None:
        """Return the trace of a request that arrived at ``started`` (seconds on the clock), None if not sampled."""
        if not self._sampler.wants(context.traceparent, started):
            return None
        try:
            return Trace(self, context, started)
        except Exception:  # noqa: BLE001 - no request fails because of its trace
            self.failed()
            return None

    def start(self, name: str, at_ns: int, *, parent: Context | None = None, server: bool = False) -> otel.Span:
        """Start a span at ``at_ns`` (unix nanoseconds). Without ``parent`` it begins a trace."""
        kind = otel.SpanKind.SERVER if server else otel.SpanKind.INTERNAL
        return self._tracer.start_span(name, _NOWHERE if parent is None else parent, kind, start_time=at_ns)

    def offset_ns(self) -> int:
        """Return what makes the clock's moments unix nanoseconds: the same for all, until the wall's time drifts."""
        offset = self._wall_ns() - _ns(self._clock())
        if abs(offset - self._offset_ns) > MOST_DRIFT_NS:
            self._offset_ns = offset
        return self._offset_ns

    def batch_of(self, answer: Answer, offset_ns: int) -> otel.Span | None:
        """Return the infer span of the batch that ``answer`` comes from, which still takes links."""
        if answer.course is None:
            return None
        batch, release = answer.course.batch, answer.release
        key = release.model, batch.number
        span = self._batches.get(key)
        if span is None:
            span = self.start("infer", _ns(batch.begun) + offset_ns)
            span.set_attributes(
                _released(answer)
                | {
                    "steelyard.backend": answer.backend,
                    "steelyard.batch.number": batch.number,
                    "steelyard.batch.size": batch.size,
                    "steelyard.lane": batch.lane,
                }
            )
            self._batches[key] = span
            # Images of a batch are answered in one turn of the loop: after it, nobody links to this span any more.
            asyncio.get_running_loop().call_soon(self._end_batch, key, _ns(batch.ended) + offset_ns)
        return span

    def _end_batch(self, key: tuple[str, int], at_ns: int) -> None:
        try:
            self._batches.pop(key).end(at_ns)
        except Exception:  # noqa: BLE001 - the loop's own handler would log each
            self.failed()

    def failed(self) -> None:
        """Tell, once, that a trace could not be made; called where an exception is handled."""
        if not self._told:
            self._told = True
            _log.exception("a request could not be traced; more of this is not logged")


class Trace:
    """One sampled request, from its arrival to the end of its answer."""

    def __init__(self, tracing: Tracing, context: RequestContext, started: float) -> None:
        """Begin; see ``Tracing.begin``."""
        self._tracing = tracing
        self._offset_ns = tracing.offset_ns()
        self._span = tracing.start(
            "request", _ns(started) + self._offset_ns, parent=_parent(context.traceparent), server=True
        )
        self._inside = otel.set_span_in_context(self._span, _NOWHERE)
        self._span.set_attribute("steelyard.request_id", context.request_id)
        if context.key_id is not None:
            self._span.set_attribute("steelyard.key_id", context.key_id)
        self._linked: set[int] = set()
        self._images = 0
        self._answered_at: float | None = None
        self._answer: Answer | None = None

    @property
    def trace_id(self) -> str:
        """Return the id under which the spans are found, 32 hex digits."""
        return otel.format_trace_id(self._span.get_span_context().trace_id)

    def around(self, detector: Detector) -> TracedDetector:
        """Return ``detector``, its answers told to this trace."""
        return TracedDetector(detector, self)

    def answered(self, answer: Answer) -> None:
        """Make the spans of one image; called in the turn of the loop in which the engine answered."""
        try:
            self._answered(answer)
        except Exception:  # noqa: BLE001 - no request fails because of its trace
            self._tracing.failed()

    def _answered(self, answer: Answer) -> None:
        infer = self._tracing.batch_of(answer, self._offset_ns)
        if answer.course is None or infer is None:
            return
        course = answer.course
        there = infer.get_span_context()
        # Several images of one request may share a batch.
        if there.span_id not in self._linked:
            self._linked.add(there.span_id)
            self._span.add_link(there)
            infer.add_link(self._span.get_span_context())
        for name, span in (("decode", course.decode), ("queue", course.queue), ("post", course.post)):
            self._child(name, span, image=self._images)
        self._images += 1
        self._answer = answer
        self._answered_at = max(self._answered_at or 0.0, course.post.ended)

    def end(self, route: str, status: int, now: float) -> None:
        """End the request, answered with ``status`` by ``route`` (the path's template) at ``now`` (seconds)."""
        try:
            self._end(route, status, now)
        except Exception:  # noqa: BLE001 - no request fails because of its trace
            self._tracing.failed()

    def _end(self, route: str, status: int, now: float) -> None:
        if self._answered_at is not None:
            self._child("respond", (self._answered_at, now))
        if self._answer is not None:
            self._span.set_attributes(_released(self._answer))
        self._span.set_attributes(
            {"http.route": route, "http.response.status_code": status, "steelyard.images": self._images}
        )
        if status >= SERVER_ERROR:
            self._span.set_status(otel.StatusCode.ERROR)
        self._span.end(_ns(now) + self._offset_ns)

    def _child(self, name: str, span: Span | tuple[float, float], *, image: int | None = None) -> None:
        begun, ended = span
        made = self._tracing.start(name, _ns(begun) + self._offset_ns, parent=self._inside)
        if image is not None:
            made.set_attribute("steelyard.image", image)
        made.end(_ns(ended) + self._offset_ns)


class TracedDetector:
    """Fulfils ``serve.service.Detector`` for one sampled request."""

    def __init__(self, detector: Detector, trace: Trace) -> None:
        """Ask ``detector`` and tell ``trace``."""
        self._detector = detector
        self._trace = trace

    @property
    def serving(self) -> Release | None:
        """Return the release that answers now."""
        return self._detector.serving

    @property
    def generation(self) -> int:
        """Return the fleet's generation of the serving release."""
        return self._detector.generation

    @property
    def backend_name(self) -> str:
        """Return the runtime's name."""
        return self._detector.backend_name

    async def detect(self, data: bytes, options: DetectOptions, context: RequestContext) -> Answer:
        """Answer one image; raises what the detector raises."""
        answer = await self._detector.detect(data, options, context)
        self._trace.answered(answer)
        return answer


def _parent(traceparent: str | None) -> Context | None:
    if traceparent is None:
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    parent = otel.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=otel.TraceFlags(int(flags, 16))
    )
    return otel.set_span_in_context(otel.NonRecordingSpan(parent), _NOWHERE)


def _released(answer: Answer) -> dict[str, str | int]:
    release = answer.release
    return {
        "steelyard.model": release.model,
        "steelyard.version": release.version,
        "steelyard.digest": release.digest,
    }


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
