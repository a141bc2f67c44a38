"""An OpenTelemetry collector on loopback that keeps what it is sent (OTLP over HTTP, protobuf)."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable


class Told(NamedTuple):
    """One span as it arrived; ids in bytes, moments in unix nanoseconds, links by (trace id, span id)."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    begun: int
    ended: int
    attributes: dict[str, Any]
    links: frozenset[tuple[bytes, bytes]]

    @property
    def place(self) -> tuple[bytes, bytes]:
        """Return what a link to this span holds."""
        return self.trace_id, self.span_id


class Collector:
    """Answers from ``open`` to ``close``, and again under the same URL."""

    def __init__(self) -> None:
        """Take a free port, and answer there."""
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        """Return the URL, without a path."""
        return f"http://127.0.0.1:{self._port}"

    def _listen(self, port: int) -> ThreadingHTTPServer:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                collector.bodies.append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return ThreadingHTTPServer(("127.0.0.1", port), Handler)

    def open(self) -> None:
        """Answer."""
        self._server = self._listen(self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[Told]:
        """Return all spans so far."""
        found = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += [_told(span) for span in scope.spans]
        return found

    def wait_for(self, enough: Callable[[list[Told]], bool], within_s: float = 20.0) -> list[Told]:
        """Return the spans once there are ``enough``."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            spans = self.spans()
            if enough(spans):
                return spans
            time.sleep(0.1)  # the service under test lives in real time
        msg = f"the spans did not come: {[span.name for span in self.spans()]}"
        raise AssertionError(msg)


def _told(span: Any) -> Told:
    attributes = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
    links = frozenset((link.trace_id, link.span_id) for link in span.links)
    moments = span.start_time_unix_nano, span.end_time_unix_nano
    return Told(span.name, span.trace_id, span.span_id, span.parent_span_id, *moments, attributes, links)
