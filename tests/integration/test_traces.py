"""Traces of a running service: what a collector gets, and what it costs when there is none."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import orjson
import pytest
from collector import Collector
from running import Service, start, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from collector import Told

pytestmark = pytest.mark.long

CANARY = "cAnArY7f3Zq9"
PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"
CALL_S = 0.4
"""Time that each call of the fake detector takes, in which a next batch gathers (seconds)."""


class Traced:
    """A service that traces every request to ``collector``."""

    def __init__(self, service: Service, collector: Collector) -> None:
        """Keep both."""
        self.service = service
        self.collector = collector

    def send(self, request_id: str, **headers: str) -> int:
        """Send the sample tray and return the status."""
        headers = {"Content-Type": "image/jpeg", "X-Request-Id": request_id} | headers
        url = f"{self.service.url}/v1/detect"
        return httpx.post(url, content=self.service.tray, headers=headers, timeout=30).status_code


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """Yield a service of one replica whose detector takes its time."""
    folder = tmp_path_factory.mktemp("traced")
    collector = Collector()
    service = start(
        folder / "home",
        folder / "serve.log",
        STEELYARD_BACKEND="fake",
        STEELYARD_FAKE_SERVICE_S=str(CALL_S),
        STEELYARD_LANES="1",
        STEELYARD_MAX_BATCH="8",
        STEELYARD_ACCESS_LOG="sampled",
        STEELYARD_TRACE_ENDPOINT=collector.url,
        STEELYARD_TRACE_RATIO="1",
    )
    try:
        yield Traced(service, collector)
    finally:
        stop(service)
        collector.close()


def named(spans: list[Told], name: str) -> list[Told]:
    """Return the spans of that name."""
    return [span for span in spans if span.name == name]


def request_of(spans: list[Told], request_id: str) -> Told:
    """Return the span of that request."""
    (found,) = [span for span in spans if span.attributes.get("steelyard.request_id") == request_id]
    return found


def test_a_request_in_a_batch_of_several_shows_its_stages_and_its_batch(traced: Traced) -> None:
    """Own decode, queue and respond spans, and a link to the infer span of the batch, which links to all of them."""
    names = [f"together-{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as threads:
        assert set(threads.map(traced.send, names)) == {200}
    spans = traced.collector.wait_for(lambda found: len(named(found, "respond")) >= len(names))
    assert traced.collector.paths == {"/v1/traces"}
    largest = max(named(spans, "infer"), key=lambda span: span.attributes["steelyard.batch.size"])
    size = largest.attributes["steelyard.batch.size"]
    assert size >= 2
    together = [span for span in named(spans, "request") if largest.place in span.links]
    assert len(together) == size
    assert largest.links == {span.place for span in together}
    version = traced.service.rollout()["serving"]
    assert largest.attributes["steelyard.version"] == version
    for request in together:
        assert request.attributes["steelyard.request_id"] in names
        assert request.attributes["http.response.status_code"] == 200
        children = {span.name: span for span in spans if span.parent_id == request.span_id}
        assert set(children) == {"decode", "queue", "post", "respond"}
        assert {span.trace_id for span in children.values()} == {request.trace_id} != {largest.trace_id}
        assert all(request.begun <= each.begun <= each.ended <= request.ended for each in children.values())
        assert request.begun <= largest.begun <= largest.ended <= children["respond"].begun
        assert children["queue"].ended - children["queue"].begun > 0.2e9 * CALL_S
    lines = [
        orjson.loads(line)
        for log in (traced.service.home / "logs").rglob("replica-*.log")
        for line in log.read_bytes().splitlines()
    ]
    told = {line["request_id"]: line for line in lines if line["message"] == "request"}
    for request in together:
        line = told[request.attributes["steelyard.request_id"]]
        assert (line["trace_id"], line["version"]) == (request.trace_id.hex(), version)
        assert line["infer_ms"] >= 1e3 * CALL_S


def test_a_trace_goes_on_and_holds_nothing_of_the_client(traced: Traced) -> None:
    """The caller's trace id and the request id are in it; the other headers, the query and the picture are not."""
    headers = {"traceparent": PARENT, "tracestate": f"a={CANARY}", "baggage": f"a={CANARY}", "X-Client-Id": CANARY}
    assert traced.send("parented", **headers, **{"User-Agent": CANARY, "Cookie": CANARY}) == 200
    spans = traced.collector.wait_for(
        lambda found: any(span.attributes.get("steelyard.request_id") == "parented" for span in found)
    )
    request = request_of(spans, "parented")
    assert (request.trace_id.hex(), request.parent_id.hex()) == ("a1" * 16, "b2" * 8)
    for body in traced.collector.bodies:
        assert CANARY.encode() not in body
        assert traced.service.tray[5000:5032] not in body


def test_without_its_collector_the_service_is_as_before(traced: Traced) -> None:
    """Requests are answered as fast, dropped spans are counted, and spans arrive again with the collector."""

    def dropped() -> float:
        text = httpx.get(f"{traced.service.url}/metrics", timeout=30).text
        rows = [row for row in text.splitlines() if row.startswith("ray_steelyard_spans_total{")]
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows if 'outcome="failed"' in row)

    before = dropped()
    traced.collector.close()
    try:
        for number in range(5):
            begun = time.monotonic()
            assert traced.send(f"alone-{number}") == 200
            assert time.monotonic() - begun < CALL_S + 0.5
        deadline = time.monotonic() + 60
        while dropped() <= before and time.monotonic() < deadline:
            time.sleep(1)  # the service under test lives in real time
        assert dropped() > before
    finally:
        traced.collector.open()
    assert traced.send("again") == 200
    traced.collector.wait_for(
        lambda found: any(span.attributes.get("steelyard.request_id") == "again" for span in found)
    )
