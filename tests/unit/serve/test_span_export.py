"""The way of spans to a collector: bounded, counted, and never in anybody's way."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from serve.prometheus import PrometheusSink
from serve.span_export import MOST_TOGETHER, SpanExport

if TYPE_CHECKING:
    from collections.abc import Sequence


class FakeCollector(SpanExporter):
    """Takes spans; ``fine``: whether it answers well; ``gate``: shut, it answers nothing."""

    def __init__(self, *, fine: bool = True) -> None:
        """Answer at once."""
        self.fine = fine
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.taken: list[ReadableSpan] = []
        self.calls = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take the spans, or fail."""
        self.calls += 1
        self.entered.set()
        assert self.gate.wait(20)
        if not self.fine:
            return SpanExportResult.FAILURE
        self.taken += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Let nobody wait any longer."""
        self.gate.set()


def world(collector: SpanExporter, most: int = 2048) -> tuple[SpanExport, PrometheusSink, TracerProvider]:
    """Return an export to ``collector``, its metrics, and what makes spans for it."""
    sink = PrometheusSink()
    export = SpanExport(collector, sink, most=most)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    return export, sink, provider


def make(provider: TracerProvider, number: int) -> None:
    """End so many spans."""
    tracer = provider.get_tracer("test")
    for _ in range(number):
        tracer.start_span("span").end()


def count_of(sink: PrometheusSink, outcome: str) -> float:
    """Return what the metric shows."""
    name = f'steelyard_spans_total{{outcome="{outcome}"}} '
    found = [line for line in sink.render().decode().splitlines() if line.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0


async def test_every_span_arrives_and_is_counted() -> None:
    """More than one call's worth, sent at the latest when the replica ends; reports do not count twice."""
    collector = FakeCollector()
    export, sink, provider = world(collector)
    make(provider, 2 * MOST_TOGETHER + 1)
    await export.close()
    export.report()
    assert len(collector.taken) == count_of(sink, "sent") == 2 * MOST_TOGETHER + 1
    assert count_of(sink, "full") == count_of(sink, "failed") == 0


async def test_a_full_queue_drops_and_counts() -> None:
    """While the collector hangs, spans beyond the bound cost nothing and are counted."""
    collector = FakeCollector()
    collector.gate.clear()
    export, sink, provider = world(collector, most=MOST_TOGETHER)
    make(provider, MOST_TOGETHER)
    assert collector.entered.wait(20)
    make(provider, MOST_TOGETHER + 5)
    export.report()
    assert count_of(sink, "full") == 5
    collector.gate.set()
    await export.close()
    assert count_of(sink, "sent") == 2 * MOST_TOGETHER


async def test_a_dead_collector_is_told_once_and_its_spans_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """One line when it begins, one when it ends; at the end of the replica one failed call is enough."""
    collector = FakeCollector(fine=False)
    export, sink, provider = world(collector)
    with caplog.at_level(logging.INFO, "serve.span_export"):
        for _ in range(2):
            make(provider, 1)
            assert not export.force_flush() or collector.calls
        collector.fine = True
        make(provider, 1)
        export.force_flush()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    collector.fine = False
    make(provider, 3 * MOST_TOGETHER)
    before = collector.calls
    await export.close()
    assert collector.calls - before <= 3
    export.report()
    assert count_of(sink, "sent") == 1
    assert count_of(sink, "failed") == 2 + 3 * MOST_TOGETHER


async def test_a_broken_exporter_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """An exception counts as a failure."""

    class Broken(FakeCollector):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if self.fine:
                raise RuntimeError
            self.fine = True
            return super().export(spans)

    collector = Broken()
    export, sink, provider = world(collector)
    with caplog.at_level(logging.CRITICAL):
        make(provider, 1)
        export.force_flush()
        collector.fine = False
        make(provider, 1)
        export.force_flush()
        await export.close()
    assert (count_of(sink, "failed"), count_of(sink, "sent")) == (1, 1)


async def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    """Closing ends after its time."""
    collector = FakeCollector()
    collector.gate.clear()
    export, _, provider = world(collector)
    make(provider, 1)
    begun = time.monotonic()
    await export.close(within_s=0.05)
    assert time.monotonic() - begun < 5
    collector.gate.set()


async def test_reports_go_on() -> None:
    """Counted once a round, for ever."""
    export, sink, provider = world(FakeCollector())
    seen: list[float] = []

    class Enough(Exception):  # noqa: N818 - it ends the loop
        pass

    async def sleep(_seconds: float) -> None:
        seen.append(count_of(sink, "sent"))
        if len(seen) == 2:
            raise Enough
        make(provider, 3)
        export.force_flush()

    with pytest.raises(Enough):
        await export.keep_reporting(sleep)
    assert seen == [0, 3]
    await export.close()
