"""Takes spans to a collector: over OTLP/HTTP, on a thread of its own, from a queue that is bounded and never waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from serve.instruments import Metric

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from serve.instruments import MetricsSink

SPANS: Final = Metric("steelyard_spans_total", "Spans by outcome: sent, or dropped as full or failed.", ("outcome",))
MOST_WAITING: Final = 2048
"""Spans that may wait for their export; further ones are dropped."""
MOST_TOGETHER: Final = 256
"""Spans in one call of the collector."""
PAUSE_MS: Final = 1000.0
EXPORT_TIMEOUT_S: Final = 2.0
"""Longest time that one call of the collector may take, its repetitions included (seconds)."""
CLOSE_S: Final = 3.0
"""Longest time that the last spans may take when a replica ends (seconds)."""
REPORT_S: Final = 1.0

_log = logging.getLogger(__name__)


def otlp_exporter(url: str) -> SpanExporter:
    """Return the exporter to the collector at ``url`` (OTLP over HTTP, protobuf).

    Headers, such as a collector's token, and certificates come from OpenTelemetry's own variables:
    ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_EXPORTER_OTLP_CERTIFICATE``.
    """
    # Loaded only where tracing is on: it costs every replica a tenth of a second and some MiB.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    # It would log every failure, with what the collector answered; ``_Counted`` tells the first of a row.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S)


class _Counted(SpanExporter):
    """Counts what an exporter sends and fails to send; called on the export's thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self.taken = self.sent = self.failed = 0
        self.closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``; while closing, nothing further once a call has failed."""
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        if not (self.closing and self._failing):
            try:
                result = self._exporter.export(spans)
            except Exception:  # noqa: BLE001 - the export's thread goes on
                _log.exception("the exporter of spans broke")
        fine = result is SpanExportResult.SUCCESS
        if fine:
            self.sent += len(spans)
        else:
            self.failed += len(spans)
        if fine is self._failing:
            self._failing = not fine
            if fine:
                _log.info("spans reach the collector again")
            else:
                _log.warning("spans do not reach the collector and are dropped; look at trace_endpoint and at it")
        return result

    def shutdown(self) -> None:
        """End a call that is being repeated."""
        self._exporter.shutdown()


class SpanExport(SpanProcessor):
    """Queues the spans that end on the event loop's thread, and counts what became of them."""

    def __init__(self, exporter: SpanExporter, sink: MetricsSink, *, most: int = MOST_WAITING) -> None:
        """Start the thread. most: spans that may wait, >= MOST_TOGETHER."""
        self._exporter = _Counted(exporter)
        # The processor drops the oldest span silently once its queue is full, so it is never let fill.
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=most + MOST_TOGETHER,
            schedule_delay_millis=PAUSE_MS,
            max_export_batch_size=MOST_TOGETHER,
            export_timeout_millis=1e3 * EXPORT_TIMEOUT_S,
        )
        self._most = most
        self._offered = self._full = 0
        self._counter = sink.counter(SPANS)
        self._reported = {"sent": 0, "full": 0, "failed": 0}
        for outcome in self._reported:
            self._counter.inc({"outcome": outcome}, 0.0)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: a span counts once it has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue ``span``, or drop it where too many wait."""
        if self._offered - self._exporter.taken >= self._most:
            self._full += 1
            return
        self._offered += 1
        self._processor.on_end(span)

    def report(self) -> None:
        """Count what has been sent and dropped since the last call."""
        now = {"sent": self._exporter.sent, "full": self._full, "failed": self._exporter.failed}
        for outcome, number in now.items():
            if number > self._reported[outcome]:
                self._counter.inc({"outcome": outcome}, float(number - self._reported[outcome]))
        self._reported = now

    async def keep_reporting(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Report for ever."""
        while True:
            self.report()
            await sleep(REPORT_S)

    async def close(self, within_s: float = CLOSE_S) -> None:
        """Send what waits, as far as ``within_s`` (seconds) allows."""
        self._exporter.closing = True
        # A thread that nobody joins: a collector that hangs must not keep the process alive.
        ending = threading.Thread(target=self._processor.shutdown, name="spans-end", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, within_s)
        self.report()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what waits now; blocks."""
        return self._processor.force_flush(timeout_millis)
