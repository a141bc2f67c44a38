"""The client of the native API: what it sends, what it makes of answers, and when it tries again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidOptionError
from models.rollout.order import Order
from serve import catalog, client_answers
from serve.admin import Promotion, parse_promote
from serve.client import Box, ServiceError, SteelyardClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

JPEG = b"\xff\xd8\xff\xe0 not really"
ANSWER: dict[str, Any] = {
    "images": [
        {
            "shape": [480, 640],
            "speed": {"preprocess": 1.0, "inference": 2.0, "postprocess": 0.5},
            "results": [
                {"name": "apple", "class": 0, "confidence": 0.9, "box": {"x1": 1.5, "y1": 2.0, "x2": 30.0, "y2": 40.0}}
            ],
        }
    ],
    "metadata": {"model": "checkout", "version": "2", "digest": "ab" * 32},
}


class FakeWire:
    """Answers each request with the next of ``replies`` (a response or an error to raise) and keeps the requests."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        """Take the replies in their order; the last one is repeated."""
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer ``request``."""
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self, **options: Any) -> SteelyardClient:
        """Return a client on this wire that notes its pauses instead of sleeping."""
        return SteelyardClient(
            "http://127.0.0.1:18700/", transport=httpx.MockTransport(self), sleep=self.pauses.append, **options
        )


def problem(status: int, code: str, detail: str = "why", **headers: str) -> httpx.Response:
    """Return a problem+json answer."""
    return httpx.Response(
        status,
        content=json.dumps({"title": "T", "status": status, "code": code, "detail": detail}),
        headers={"Content-Type": "application/problem+json", **headers},
    )


def test_detect_reads_the_answer() -> None:
    """Boxes, shape and provenance come out typed."""
    with FakeWire(httpx.Response(200, json=ANSWER)).client() as client:
        answer = client.detect(JPEG)

    assert answer.boxes == (Box("apple", 0, 0.9, 1.5, 2.0, 30.0, 40.0),)
    assert answer.shape == (480, 640)
    assert (answer.model, answer.version, answer.digest) == ("checkout", "2", "ab" * 32)
    assert answer.body == ANSWER


def test_detect_sends_raw_bytes_and_only_given_options() -> None:
    """The route, the media type and the query are what the API documents."""
    wire = FakeWire(httpx.Response(200, json=ANSWER))
    with wire.client() as client:
        client.detect(JPEG)
        client.detect(JPEG, model="my model", conf=0.5, iou=0.6, max_det=3, classes={2, 1})

    first, second = wire.requests
    assert (first.method, first.url.raw_path) == ("POST", b"/v1/detect")
    assert first.content == JPEG
    assert first.headers["Content-Type"] == "image/jpeg"
    assert second.url.raw_path.startswith(b"/v1/models/my%20model/detect?")
    assert dict(second.url.params) == {"conf": "0.5", "iou": "0.6", "max_det": "3", "classes": "1,2"}


@pytest.mark.parametrize(
    ("head", "media"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"just text", "application/octet-stream"),
    ],
)
def test_media_type_follows_the_bytes(head: bytes, media: str) -> None:
    """File names do not matter: the signature decides."""
    wire = FakeWire(httpx.Response(200, json=ANSWER))
    with wire.client() as client:
        client.detect(head)

    assert wire.requests[0].headers["Content-Type"] == media


def test_problem_becomes_a_service_error() -> None:
    """Status, code, detail and Retry-After of problem+json survive."""
    wire = FakeWire(problem(429, "overloaded", "the queue is full", **{"Retry-After": "3"}))
    with wire.client() as client, pytest.raises(ServiceError) as caught:
        client.detect(JPEG)

    assert (caught.value.status, caught.value.code, caught.value.detail) == (429, "overloaded", "the queue is full")
    assert caught.value.retry_after_s == 3.0
    assert len(wire.requests) == 1


def test_detect_tries_again_after_503_as_told() -> None:
    """A 503 is tried again after the seconds of Retry-After, within reason."""
    wire = FakeWire(
        problem(503, "unavailable", **{"Retry-After": "2"}),
        problem(503, "unavailable", **{"Retry-After": "86400"}),
        httpx.Response(200, json=ANSWER),
    )
    with wire.client() as client:
        assert client.detect(JPEG).version == "2"

    assert wire.pauses == [2.0, 10.0]


def test_detect_tries_again_after_a_broken_connection() -> None:
    """Detection is idempotent: a connection lost with a dead replica costs the caller nothing."""
    wire = FakeWire(httpx.ReadError("reset"), httpx.Response(200, json=ANSWER))
    with wire.client() as client:
        assert client.detect(JPEG).version == "2"

    assert len(wire.requests) == 2


def test_detect_gives_up_after_its_retries() -> None:
    """Without any service the error says so and what to do."""
    wire = FakeWire(httpx.ConnectError("refused"))
    with wire.client(retries=1) as client, pytest.raises(ServiceError, match="steelyard serve") as caught:
        client.detect(JPEG)

    assert caught.value.code == "unreachable"
    assert len(wire.requests) == 2


def test_a_timeout_is_not_tried_again() -> None:
    """The caller's time is used up; trying again would double the load on a slow service."""
    wire = FakeWire(httpx.ReadTimeout("slow"))
    with wire.client() as client, pytest.raises(ServiceError) as caught:
        client.detect(JPEG)

    assert caught.value.code == "timeout"
    assert len(wire.requests) == 1


@pytest.mark.parametrize("call", [lambda c: c.promote("checkout", "2"), lambda c: c.rollback("checkout")])
def test_changes_are_sent_once_with_the_key(call: Callable[[SteelyardClient], object]) -> None:
    """Promote and rollback change state: a 503 is reported, never repeated; the admin key goes as a bearer token."""
    wire = FakeWire(problem(503, "unavailable"))
    with wire.client(key="secret") as client, pytest.raises(ServiceError):
        call(client)

    assert len(wire.requests) == 1
    assert wire.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("key", "variable", "sent"),
    [(None, None, None), (None, "b", "b"), ("a", "b", "a"), ("", "b", "b"), (None, "", None)],
)
def test_a_key_of_the_environment_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str | None, variable: str | None, sent: str | None
) -> None:
    """Unless one is given; read when a client is made."""
    monkeypatch.delenv("STEELYARD_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("STEELYARD_API_KEY", variable)
    wire = FakeWire(httpx.Response(200, json={"models": []}))
    with wire.client(key=key) as client:
        client.models()
    assert wire.requests[0].headers.get("Authorization") == (sent and f"Bearer {sent}")


def test_promote_names_the_version() -> None:
    """The body of promote is the documented one."""
    wire = FakeWire(httpx.Response(200, json={"model": "checkout"}))
    with wire.client() as client:
        client.promote("checkout", "2")

    assert wire.requests[0].url.path == "/v1/models/checkout/promote"
    assert json.loads(wire.requests[0].content) == {"version": "2"}


def test_promote_sends_reason_and_order() -> None:
    """As the admin route reads them."""
    wire = FakeWire(httpx.Response(200, json={"model": "checkout"}))
    order = Order(force="hot fix", canary=(0.05, 0.25))
    with wire.client() as client:
        client.promote("checkout", "2", reason="hot fix", order=order)

    asked = parse_promote(wire.requests[0].content, "application/json")
    assert asked == Promotion("2", "hot fix", order)


@given(
    body=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["images", "metadata", "shape", "error"]), inner)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    status=st.sampled_from([200, 404, 500, 502]),
)
def test_no_answer_ends_in_another_error(body: bytes, status: int) -> None:
    """Whatever a server answers, callers see an answer or a ServiceError, never a KeyError."""
    with FakeWire(httpx.Response(status, content=body)).client(retries=0) as client, pytest.raises(ServiceError):
        client.detect(JPEG)


@pytest.mark.parametrize(
    ("row", "documented"),
    [
        (client_answers.ModelRow, catalog.ModelSummary),
        (client_answers.VersionRow, catalog.VersionSummary),
        (client_answers.ReplicaRow, catalog.ReplicaState),
        (client_answers.TrialRow, catalog.TrialState),
        (client_answers.ProbationRow, catalog.ProbationState),
        (client_answers.VerdictRow, catalog.GateVerdict),
        (client_answers.RegistryRow, catalog.RegistryState),
        (client_answers.Rollout, catalog.RolloutState),
    ],
)
def test_a_row_holds_what_is_documented(row: type, documented: type[BaseModel]) -> None:
    """The client's types are its own, since it may talk to another release; of this one it misses no field."""
    assert set(row.__annotations__) == set(documented.model_fields)


def test_a_list_that_is_none_is_an_error() -> None:
    """An answer without its list is not taken for an empty one."""
    with FakeWire(httpx.Response(200, json={"items": []})).client() as client, pytest.raises(ServiceError):
        client.models()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """A slip in the address is told before anything is sent."""
    with pytest.raises(InvalidOptionError):
        SteelyardClient(url)
