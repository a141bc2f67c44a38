"""Spans of sampled requests, over a real engine on the fake backend and the whole application."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from PIL import Image

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.engine import Engine, EngineSettings
from models.errors import BackendError
from serve.fake_service import FakeService, fake_release
from serve.ingress import create_app
from serve.sampling import Sampler
from serve.settings import Settings
from serve.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"


def png(seed: int) -> bytes:
    """Return a random picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class World:
    """An application over one engine whose calls of the runtime wait while ``open`` is not set."""

    def __init__(self, plan: Plan, *, ratio: float = 1.0, processor: SpanProcessor | None = None) -> None:
        """Sample the share ``ratio``."""
        self.open = threading.Event()
        self.open.set()
        self.spans = InMemorySpanExporter()
        self.engine = Engine(FakeBackend(0.001, plan=plan, sleep=self._sleep), EngineSettings(threads=1))
        service = FakeService()
        service.detectors["checkout"] = self.engine  # type: ignore[assignment]
        processor = processor or SimpleSpanProcessor(self.spans)
        tracing = Tracing(processor, Sampler(ratio, 0.0), replica="r1")
        self.app = create_app(service, Settings(), tracing=tracing)

    def _sleep(self, _seconds: float) -> None:
        assert self.open.wait(20)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Yield a client while the engine serves."""
        async with (
            self.engine,
            httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1:8000") as client,
        ):
            release = fake_release()
            await self.engine.prepare(release)
            self.engine.flip(release.digest, 1)
            yield client

    async def until(self, queued: int, running: int) -> None:
        """Wait until so many images wait, decoded, and so many batches run."""
        for _ in range(4000):
            if (self.engine._batcher.queued, self.engine.running, self.engine._path._decoding) == (queued, running, 0):
                return
            await asyncio.to_thread(threading.Event().wait, 0.005)
        pytest.fail("the images never came")

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name."""
        return [span for span in self.spans.get_finished_spans() if span.name == name]


async def send(client: httpx.AsyncClient, images: Sequence[int], **headers: str) -> httpx.Response:
    """Send one request with pictures of those seeds."""
    files = [("file", ("a.png", png(seed), "image/png")) for seed in images]
    return await client.post("/v1/detect", files=files, headers=headers)


def inside(outer: ReadableSpan, inner: ReadableSpan) -> bool:
    """Return whether ``inner`` lies in ``outer``, and neither ends before it begins."""
    assert outer.start_time is not None
    assert inner.start_time is not None
    assert outer.end_time is not None
    assert inner.end_time is not None
    return outer.start_time <= inner.start_time <= inner.end_time <= outer.end_time


def ids(spans: Sequence[Any]) -> list[int]:
    """Return the span ids of spans or links."""
    return [each.context.span_id for each in spans]


async def test_a_request_in_a_batch_of_several_is_linked_to_it() -> None:
    """Each of three shows its own decode, queue, post and respond and links to the infer span, which links back."""
    world = World(Plan(lanes=1, max_batch=8))
    async with world.client() as client:
        world.open.clear()
        first = asyncio.create_task(send(client, [0], **{"x-request-id": "first"}))
        await world.until(queued=0, running=1)
        others = [asyncio.create_task(send(client, [n], **{"x-request-id": f"other-{n}"})) for n in (1, 2, 3)]
        await world.until(queued=3, running=1)
        world.open.set()
        assert {answer.status_code for answer in await asyncio.gather(first, *others)} == {200}
    alone, batch = sorted(world.named("infer"), key=lambda span: span.attributes["steelyard.batch.size"])  # type: ignore[index, arg-type, return-value]
    assert (alone.attributes["steelyard.batch.size"], batch.attributes["steelyard.batch.size"]) == (1, 3)  # type: ignore[index]
    roots = {span.attributes["steelyard.request_id"]: span for span in world.named("request")}  # type: ignore[index]
    together = [roots[f"other-{number}"] for number in (1, 2, 3)]
    assert sorted(ids(batch.links)) == sorted(ids(together))
    assert ids(alone.links) == ids([roots["first"]])
    for root in together:
        assert ids(root.links) == ids([batch])
        assert root.links[0].context.trace_id == batch.context.trace_id != root.context.trace_id
        children = [
            span
            for span in world.spans.get_finished_spans()
            if span.parent is not None and span.parent.span_id == root.context.span_id
        ]
        assert sorted(span.name for span in children) == ["decode", "post", "queue", "respond"]
        decode, queue, post, respond = (
            next(each for each in children if each.name == name) for name in ("decode", "queue", "post", "respond")
        )
        moments = [decode.end_time, queue.start_time, queue.end_time, batch.start_time, batch.end_time, post.start_time]
        assert moments == sorted(moments)  # type: ignore[type-var]
        assert (queue.start_time, queue.end_time) == (decode.end_time, pytest.approx(batch.start_time, abs=10**6))
        assert respond.start_time == post.end_time


async def test_spans_tell_the_release_and_nothing_of_the_content() -> None:
    """The attributes, all of them; the resource names service, version and replica."""
    world = World(Plan(lanes=1, max_batch=8))
    async with world.client() as client:
        await send(
            client,
            [0, 1],
            **{
                "x-request-id": "till-4",
                "user-agent": "canary",
                "x-client-id": "canary",
                "tracestate": "a=canary",
                "baggage": "a=canary",
            },
        )
    (root,) = world.named("request")
    release = fake_release()
    named = {"steelyard.model": "checkout", "steelyard.version": "1", "steelyard.digest": release.digest}
    assert dict(root.attributes or {}) == named | {
        "steelyard.request_id": "till-4",
        "steelyard.images": 2,
        "http.route": "/v1/detect",
        "http.response.status_code": 200,
    }
    assert root.kind is SpanKind.SERVER
    for infer in world.named("infer"):
        told = dict(infer.attributes or {})
        assert told.items() >= named.items()
        assert set(told) - set(named) == {
            "steelyard.backend", "steelyard.batch.number", "steelyard.batch.size", "steelyard.lane",
        }  # fmt: skip
    for name in ("decode", "queue", "post"):
        assert sorted(dict(span.attributes or {})["steelyard.image"] for span in world.named(name)) == [0, 1]  # type: ignore[type-var]
    assert dict(world.named("respond")[0].attributes or {}) == {}
    assert "canary" not in "".join(span.to_json() for span in world.spans.get_finished_spans())
    resource = root.resource.attributes
    assert (resource["service.name"], resource["service.instance.id"]) == ("steelyard", "r1")


async def test_the_callers_trace_goes_on() -> None:
    """A sampled traceparent gives the request its trace id and its parent; one that is not sampled traces nothing."""
    world = World(Plan(lanes=1, max_batch=8), ratio=0.0)
    async with world.client() as client:
        await send(client, [0])
        await send(client, [0], traceparent=PARENT[:-1] + "0")
        assert world.spans.get_finished_spans() == ()
        await send(client, [0], traceparent=PARENT)
    (root,) = world.named("request")
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == ("a1" * 16, "b2" * 8)
    assert world.named("infer")[0].context.trace_id != root.context.trace_id


@settings(max_examples=15, deadline=None)
@given(
    requests=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    plan=st.sampled_from([Plan(1, 8), Plan(2, 3), Plan(2, 1, alone=True, decodes=True)]),
)
def test_spans_are_nested_and_their_ids_unique(requests: list[int], plan: Plan) -> None:
    """Whatever shares a batch with whatever: children lie in their request, ids are unique, links go both ways."""

    async def scene() -> World:
        world = World(plan)
        async with world.client() as client:
            answers = await asyncio.gather(*(send(client, range(images)) for images in requests))
            assert {answer.status_code for answer in answers} == {200}
        return world

    world = asyncio.run(scene())
    spans = world.spans.get_finished_spans()
    assert len(set(ids(spans))) == len(spans)
    roots = {span.context.span_id: span for span in world.named("request")}
    infers = {span.context.span_id: span for span in world.named("infer")}
    assert len(roots) == len(requests) == len({span.context.trace_id for span in roots.values()})
    numbers = [dict(span.attributes or {})["steelyard.batch.number"] for span in infers.values()]
    assert len(set(numbers)) == len(numbers)
    for span in spans:
        if span.parent is not None:
            assert inside(roots[span.parent.span_id], span)
            assert span.context.trace_id == span.parent.trace_id
    forth = {(root, link) for root, span in roots.items() for link in ids(span.links)}
    back = {(link, infer) for infer, span in infers.items() for link in ids(span.links)}
    assert forth == back
    assert {infer for _, infer in forth} == set(infers)
    assert all(len(span.links) == len(set(ids(span.links))) for span in spans)
    for name in ("decode", "queue", "post"):
        assert len(world.named(name)) == sum(requests)


async def test_a_failed_request_has_a_span_with_its_status() -> None:
    """No answer, no batch to link to; the server's error is marked, the client's is not."""
    world = World(Plan(lanes=1, max_batch=8))
    async with world.client() as client:
        await client.post("/v1/detect", content=b"no picture")
        world.engine._backend.infer_error = BackendError("broken")  # type: ignore[attr-defined]
        await send(client, [0])
    refused, failed = world.named("request")
    assert dict(refused.attributes or {})["http.response.status_code"] == 415
    assert refused.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description is None
    assert failed.links == ()
    assert {span.name for span in world.spans.get_finished_spans()} == {"request"}


async def test_probes_are_not_traced() -> None:
    """They come every few seconds from every balancer."""
    world = World(Plan(lanes=1, max_batch=8))
    async with world.client() as client:
        for path in ("/healthz/live", "/healthz/ready", "/metrics"):
            await client.get(path)
        assert world.spans.get_finished_spans() == ()
        await client.get("/v1/models")
    assert len(world.spans.get_finished_spans()) == 1


async def test_a_broken_tracer_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and the answers are as without it."""

    class Broken(SpanProcessor):
        def on_start(self, *_args: Any, **_options: Any) -> None:
            raise RuntimeError

        def on_end(self, *_args: Any, **_options: Any) -> None:
            raise RuntimeError

    world = World(Plan(lanes=1, max_batch=8), processor=Broken())
    async with world.client() as client:
        answers = [await send(client, [0]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len([record for record in caplog.records if record.name == "serve.tracing"]) == 1


async def test_a_processor_that_breaks_at_the_end_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the spans began well."""

    class Broken(SpanProcessor):
        def on_end(self, *_args: Any, **_options: Any) -> None:
            raise RuntimeError

    world = World(Plan(lanes=1, max_batch=8), processor=Broken())
    async with world.client() as client:
        assert (await send(client, [0])).status_code == 200
        await asyncio.sleep(0)
    assert {record.name for record in caplog.records} == {"serve.tracing"}
