"""The detect routes over a fake detector: bodies, options, several images, swaps, deadlines, disconnects."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any

import pytest

from models.errors import BackendError, OverloadedError, UnavailableError
from serve.connection import LINGER_BYTES
from serve.errors import PROBLEM_JSON, TYPE_PREFIX
from serve.fake_service import FakeService, fake_release
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    import httpx
    from starlette.types import Message

IMAGE = b"\xff\xd8\xff\xe0 a picture"
OTHER = b"\xff\xd8\xff\xe0 another"
JPEG = {"content-type": "image/jpeg"}


def encoded(data: bytes) -> str:
    """Return ``data`` as base64 text."""
    return base64.b64encode(data).decode()


async def test_raw_form_and_json_agree_to_the_last_digit(client: httpx.AsyncClient) -> None:
    """The wrapping of an image changes nothing of its answer."""
    options = {"conf": "0.01", "decimals": "10"}
    raw = await client.post("/v1/detect", params=options, content=IMAGE, headers=JPEG)
    form = await client.post("/v1/detect", params=options, files={"file": ("tray.jpg", IMAGE)})
    json = await client.post("/v1/detect", params=options, json={"image": encoded(IMAGE)})
    in_form = await client.post("/v1/detect", data=options, files={"file": ("tray.jpg", IMAGE)})
    in_json = await client.post("/v1/detect", json={"image": encoded(IMAGE), "conf": 0.01, "decimals": 10})
    assert raw.status_code == 200
    assert raw.json()["images"][0]["results"]
    assert raw.content == form.content == json.content == in_form.content == in_json.content


async def test_the_first_model_answers_the_short_route(client: httpx.AsyncClient) -> None:
    """``/v1/detect`` and the first model's own route are the same; another model answers differently."""
    short = await client.post("/v1/detect", content=IMAGE)
    first = await client.post("/v1/models/checkout/detect", content=IMAGE)
    second = await client.post("/v1/models/street/detect", content=IMAGE)
    assert short.content == first.content
    assert second.json()["metadata"]["model"] == "street"


async def test_an_answer_names_its_release_everywhere(client: httpx.AsyncClient) -> None:
    """Headers and metadata agree on version and digest, and the timing is there."""
    response = await client.post("/v1/detect", content=IMAGE, headers={"x-request-id": "till-4:17"})
    metadata = response.json()["metadata"]
    assert response.headers["x-model-version"] == metadata["version"] == "1"
    assert response.headers["x-weights-digest"] == metadata["digest"] == fake_release().digest
    assert response.headers["x-request-id"] == "till-4:17"
    assert response.headers["server-timing"].startswith(
        "decode;dur=1.50, queue;dur=0.25, infer;dur=8.12, post;dur=0.50"
    )


@pytest.mark.parametrize("query", ["conf=0&classes=banana", "conf=0&classes=1"])
async def test_options_reach_the_engine(client: httpx.AsyncClient, query: str) -> None:
    """Names and ids of classes select the same objects."""
    response = await client.post(f"/v1/detect?{query}", content=IMAGE)
    assert {result["class"] for result in response.json()["images"][0]["results"]} <= {1}
    assert response.json()["metadata"]["thresholds"]["conf"] == 0.0


async def test_normalize_divides_by_width_and_height(client: httpx.AsyncClient) -> None:
    """Normalized boxes lie within 0 and 1 and are the pixel boxes divided."""
    plain = (await client.post("/v1/detect?conf=0&decimals=10", content=IMAGE)).json()["images"][0]
    scaled = (await client.post("/v1/detect?conf=0&decimals=10&normalize=true", content=IMAGE)).json()["images"][0]
    height, width = plain["shape"]
    for one, other in zip(plain["results"], scaled["results"], strict=True):
        assert other["box"]["x2"] == pytest.approx(one["box"]["x2"] / width, abs=1e-9)
        assert other["box"]["y2"] == pytest.approx(one["box"]["y2"] / height, abs=1e-9)


BAD: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("conf=7", "checkout", {"content": IMAGE}, 422, "invalid_option"),
    ("classes=pear", "checkout", {"content": IMAGE}, 422, "invalid_option"),
    ("", "checkout", {"content": b""}, 400, "invalid_image"),
    ("", "checkout", {"content": b"just text", "headers": JPEG}, 400, "invalid_image"),
    (
        "",
        "checkout",
        {"content": b"just text", "headers": {"content-type": "text/plain"}},
        415,
        "unsupported_media_type",
    ),
    ("", "checkout", {"data": {"conf": "0.5"}}, 415, "unsupported_media_type"),
    ("", "checkout", {"content": b"GIF89a", "headers": {"content-type": "image/gif"}}, 415, "unsupported_image"),
    ("", "checkout", {"content": IMAGE, "headers": {"content-encoding": "gzip"}}, 415, "unsupported_encoding"),
    ("", "checkout", {"content": b"\xff" * 1_000_001}, 413, "body_too_large"),
    ("", "checkout", {"files": [("file", ("a", IMAGE))] * 5}, 413, "too_many_images"),
    ("", "checkout", {"files": {"upload": ("a", IMAGE)}}, 400, "invalid_body"),
    ("", "checkout", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_body"),
    ("", "checkout", {"json": {"image": "http://169.254.169.254/"}}, 400, "invalid_body"),
    ("", "checkout", {"json": {"image": encoded(IMAGE), "url": "x"}}, 422, "invalid_option"),
    ("", "unknown", {"content": IMAGE}, 404, "unknown_model"),
    ("", "checkout", {"content": IMAGE, "headers": {"x-request-timeout": "-1"}}, 422, "invalid_option"),
]


@pytest.mark.parametrize(("query", "model", "request_", "status", "code"), BAD)
async def test_each_bad_request_is_its_own_problem(
    client: httpx.AsyncClient, *, query: str, model: str, request_: dict[str, Any], status: int, code: str
) -> None:
    """Every mistake has its status and code, and the next good request does not notice it."""
    response = await client.post(f"/v1/models/{model}/detect?{query}", **request_)
    body = response.json()
    assert (response.status_code, body["code"], response.headers["content-type"]) == (status, code, PROBLEM_JSON)
    assert body["status"] == status
    assert body["type"] == TYPE_PREFIX + code
    assert body["detail"]
    assert body["title"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert (await client.post("/v1/detect", content=IMAGE)).status_code == 200


async def test_a_chunked_body_is_bounded_while_it_arrives(client: httpx.AsyncClient) -> None:
    """A body that does not declare its length is kept up to the limit; some more is thrown away, then it ends."""
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield b"\xff" * 100_000

    response = await client.post("/v1/detect", content=endless())
    assert response.status_code == 413
    assert response.headers["connection"] == "close"
    assert sent * 100_000 <= 1_000_000 + LINGER_BYTES + 200_000


async def test_each_image_succeeds_or_carries_its_own_error(client: httpx.AsyncClient) -> None:
    """One broken image among good ones costs only itself."""
    alone = (await client.post("/v1/detect?conf=0", content=OTHER)).json()["images"][0]["results"]
    response = await client.post(
        "/v1/detect?conf=0", files=[("file", ("a", IMAGE)), ("file", ("b", b"text")), ("file", ("c", OTHER))]
    )
    images = response.json()["images"]
    assert response.status_code == 200
    assert [sorted(image) for image in images] == [
        ["results", "shape", "speed"],
        ["error"],
        ["results", "shape", "speed"],
    ]
    assert images[1]["error"]["code"] == "invalid_image"
    assert images[2]["results"] == alone


async def test_when_all_images_fail_the_first_one_s_status_counts(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    """The answer is a problem then, with every image's own reason."""

    def overload(number: int) -> None:
        if number == 1:
            msg = "The queue is full; try again"
            raise OverloadedError(msg)

    service.detectors["checkout"].before = overload
    response = await client.post("/v1/detect", files=[("file", ("a", b"text")), ("file", ("b", IMAGE))])
    assert response.status_code == 400
    assert [image["code"] for image in response.json()["images"]] == ["invalid_image", "overloaded"]


async def test_images_of_one_request_run_at_the_same_time(client: httpx.AsyncClient, service: FakeService) -> None:
    """The first image does not hold up the second."""
    detector = service.detectors["checkout"]
    both = asyncio.Event()

    async def meet() -> None:
        if detector.running == 2:
            both.set()
        await both.wait()

    detector.before = lambda _: meet()
    response = await client.post("/v1/detect", files=[("file", ("a", IMAGE)), ("file", ("b", OTHER))])
    assert response.status_code == 200


async def test_a_swap_between_two_images_still_gives_one_version(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    """The image that the old version answered is run again, so that the one version named is true of all."""
    detector = service.detectors["checkout"]
    # The fake leases its release before this runs: image 0 is answered by version 1, the others by version 2.
    detector.before = lambda number: detector.flip(fake_release("checkout", "2")) if number == 0 else None
    three = {"images": [encoded(IMAGE), encoded(OTHER), encoded(IMAGE)]}
    mixed = (await client.post("/v1/detect?conf=0", json=three)).json()
    assert detector.calls == 4
    calm = (await client.post("/v1/detect?conf=0", json=three)).json()
    assert mixed["metadata"] == calm["metadata"]
    assert mixed["metadata"]["version"] == "2"
    assert mixed["images"] == calm["images"]


async def test_a_trial_that_ends_between_two_images_still_gives_one_version(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    """The canary's generation is higher than what answers after it; the image it answered is run again."""
    detector = service.detectors["checkout"]
    serving = detector.serving

    def end_trial(number: int) -> None:
        # The fake leases its release before this runs: image 0 is answered by the candidate, all others are not.
        if number == 0:
            detector.serving, detector.generation = serving, 1

    detector.serving, detector.generation = fake_release("checkout", "2"), 2
    detector.before = end_trial
    three = {"images": [encoded(IMAGE), encoded(OTHER), encoded(IMAGE)]}
    mixed = (await client.post("/v1/detect?conf=0", json=three)).json()
    calm = (await client.post("/v1/detect?conf=0", json=three)).json()
    assert (mixed["metadata"]["version"], mixed["metadata"]["generation"]) == ("1", 1)
    assert mixed["metadata"] == calm["metadata"]
    assert mixed["images"] == calm["images"]


async def test_a_swap_that_renumbers_classes_does_not_change_what_a_name_means(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    """Names are resolved again under the release that answers."""
    detector = service.detectors["checkout"]
    renumbered = fake_release("checkout", "2", ("tv, small", "bread", "apple", "banana"))
    detector.before = lambda number: detector.flip(renumbered) if number == 0 else None
    body = {"images": [encoded(bytes([255, number])) for number in range(4)], "conf": 0, "classes": ["banana"]}
    images = (await client.post("/v1/detect", json=body)).json()["images"]
    assert detector.calls == 8
    found = [(result["name"], result["class"]) for image in images for result in image["results"]]
    assert set(found) == {("banana", 3)}


async def test_versions_that_keep_changing_end_in_a_retry(client: httpx.AsyncClient, service: FakeService) -> None:
    """A request whose images never meet on one version is not answered by a mixture."""
    detector = service.detectors["checkout"]
    detector.before = lambda number: detector.flip(fake_release("checkout", str(number)))
    response = await client.post("/v1/detect", json={"images": [encoded(IMAGE)] * 4})
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_without_a_release_the_answer_is_503(client: httpx.AsyncClient, service: FakeService) -> None:
    """A model that is still loading says when to come back."""
    service.detectors["checkout"].serving = None
    response = await client.post("/v1/detect", content=IMAGE)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("fault", "status", "code", "retry"),
    [
        (OverloadedError("full", retry_after_s=2.0), 429, "overloaded", "2"),
        (UnavailableError("in doubt", retry_after_s=5.0), 503, "unavailable", "5"),
        (BackendError("runtime said /srv/secret"), 500, "backend_failed", None),
        (ZeroDivisionError("secret"), 500, "internal", None),
    ],
)
async def test_faults_of_the_engine_are_problems(
    client: httpx.AsyncClient,
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
    *,
    fault: Exception,
    status: int,
    code: str,
    retry: str | None,
) -> None:
    """Capacity says when to come back; a failure says nothing of the insides, but the log does under the id."""

    def fail(_: int) -> None:
        raise fault

    service.detectors["checkout"].before = fail
    with caplog.at_level(logging.ERROR, "serve"):
        response = await client.post("/v1/detect", content=IMAGE)
    assert (response.status_code, response.json()["code"], response.headers.get("retry-after")) == (status, code, retry)
    assert "secret" not in response.text
    logged = [getattr(record, "request_id", None) for record in caplog.records]
    assert logged == ([response.headers["x-request-id"]] if status == 500 else [])


async def test_a_detector_that_hangs_hits_the_deadline(client: httpx.AsyncClient, service: FakeService) -> None:
    """The work is cancelled, the client gets 504, and nothing stays behind."""
    detector = service.detectors["checkout"]
    detector.before = lambda _: asyncio.Event().wait()
    response = await client.post("/v1/detect", content=IMAGE, headers={"x-request-timeout": "0.01"})
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert detector.running == 0


async def test_one_image_that_is_late_does_not_cost_the_others(client: httpx.AsyncClient, service: FakeService) -> None:
    """What was ready at the deadline is answered; only the late image carries the error."""
    service.detectors["checkout"].before = lambda number: asyncio.Event().wait() if number == 0 else None
    body = {"images": [encoded(IMAGE), encoded(OTHER)]}
    response = await client.post("/v1/detect", json=body, headers={"x-request-timeout": "0.05"})
    images = response.json()["images"]
    assert response.status_code == 200
    assert images[0]["error"]["code"] == "deadline_exceeded"
    assert "results" in images[1]


async def test_the_engine_gets_the_request_s_context(client: httpx.AsyncClient, service: FakeService) -> None:
    """Id, deadline, trace and client reach the engine as the client sent them."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await client.post(
        "/v1/detect", content=IMAGE, headers={"x-request-id": "a", "traceparent": trace, "x-client-id": "till-7"}
    )
    (context,) = service.detectors["checkout"].contexts
    assert (context.request_id, context.traceparent, context.key_id) == ("a", trace, None)
    assert context.client_id == "till-7"


@pytest.mark.parametrize("images", [1, 3])
async def test_a_client_that_leaves_cancels_its_work(service: FakeService, images: int) -> None:
    """Detection stops, no task stays behind, and nobody is sent a normal answer."""
    app = create_app(service, Settings())
    detector = service.detectors["checkout"]
    started = asyncio.Event()

    async def hang() -> None:
        if detector.running == images:
            started.set()
        await asyncio.Event().wait()

    detector.before = lambda _: hang()
    body = b'{"images":["' + b'","'.join([encoded(IMAGE).encode()] * images) + b'"]}'
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await started.wait()
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/detect", "raw_path": b"/v1/detect", "root_path": "",
        "scheme": "http", "query_string": b"", "http_version": "1.1", "asgi": {"version": "3.0"},
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    await app(scope, receive, send)
    await asyncio.sleep(0)
    assert (detector.calls, detector.running) == (images, 0)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [499]
    assert asyncio.all_tasks() == {asyncio.current_task()}
