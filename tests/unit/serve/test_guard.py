"""One decision a request: what keys open, what they do not, and what strangers can tell apart, which is nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.routing import Match, Route

from models.errors import OverloadedError, UnauthorizedError
from serve.access import AccessKey, AccessKeys, Scope, issue
from serve.access_document import render
from serve.access_file import AccessFile
from serve.errors import ForbiddenError
from serve.fake_service import FakeService
from serve.guard import OPEN, Guard, credential_of, scopes_for
from serve.hooks import PATH as HOOK_PATH
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import httpx
    from fastapi import FastAPI

    Connected = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]

ADMIN_KEY = "correct horse"
HOOK_SECRET = "hook"  # noqa: S105 - a test's own
JPEG = b"\xff\xd8\xff\xe0 not ascii \xff\xd9"
ISSUED = {scope: issue(scope.value, {scope}, 0.0) for scope in Scope}
TEXTS = {scope: text for scope, (_, text) in ISSUED.items()}
EXPIRED, EXPIRED_TEXT = issue("expired", set(Scope), 0.0, lifetime_s=1.0)
WRONG = TEXTS[Scope.PREDICT][:-4] + "zzzz"


class FakeLimits:
    """Counts who is in; refuses while ``full``."""

    def __init__(self) -> None:
        """Let everybody in."""
        self.full = False
        self.seen: list[str] = []
        self.inside = 0

    async def enter(self, key: AccessKey) -> None:
        """Note ``key``."""
        if self.full:
            msg = "Too many requests with this key; send fewer"
            raise OverloadedError(msg, retry_after_s=7.0)
        self.seen.append(key.key_id)
        self.inside += 1

    def leave(self, key: AccessKey) -> None:
        """Forget ``key``."""
        assert key.key_id == self.seen[-1]
        self.inside -= 1


def guarded(home: Path, service: FakeService, *, limits: FakeLimits | None = None, **settings: Any) -> FastAPI:
    """Return an application with a key for each scope, one that expired, and the admin key of the settings."""
    made = Settings(
        home=home,
        models=("checkout", "street"),
        admin_key=SecretStr(ADMIN_KEY),
        webhook_secret=SecretStr(HOOK_SECRET),
        allow_fault_injection=True,
        **settings,
    )
    home.mkdir(exist_ok=True)
    made.access_path.write_bytes(render([*(key for key, _ in ISSUED.values()), EXPIRED]))
    access = AccessFile.of(made)
    access.load()
    return create_app(service, made, access=access, limits=limits)


@pytest.fixture(name="guarded_app")
def _guarded_app(tmp_path: Path, service: FakeService) -> FastAPI:
    """Return an application under keys."""
    return guarded(tmp_path, service)


def bearer(text: str) -> dict[str, str]:
    """Return the headers that carry ``text``."""
    return {"Authorization": f"Bearer {text}"}


def routes_of(router: Any) -> list[Route]:
    """Return every route, those of included routers too."""
    found: list[Route] = []
    for route in router.routes:
        found += [route] if isinstance(route, Route) else routes_of(route.original_router)
    return found


def paths_of(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of every route, with a model's name where it takes one."""
    return [
        (method, route.path.replace("{model}", "checkout"))
        for route in routes_of(app)
        for method in sorted(route.methods or ())
    ]


BAD: list[dict[str, str]] = [
    {},
    bearer(""),
    bearer("x"),
    bearer(WRONG),
    bearer("sy_unknown234_" + "0" * 48),
    bearer(EXPIRED_TEXT),
    {"Authorization": TEXTS[Scope.PREDICT]},
    {"Authorization": f"Basic {TEXTS[Scope.PREDICT]}"},
    {"X-Api-Key": ""},
    {"X-Api-Key": WRONG},
    {"X-Api-Key": f"Bearer {TEXTS[Scope.PREDICT]}"},
    {"X-Api-Key": TEXTS[Scope.ADMIN], **bearer(TEXTS[Scope.PREDICT])},
]


async def test_no_route_is_forgotten(guarded_app: FastAPI, service: FakeService, connected: Connected) -> None:
    """Without a valid key every route, and every path that is none, gives one and the same answer."""
    known = [each for each in paths_of(guarded_app) if each[1] not in OPEN and each[1] != HOOK_PATH]
    assert len(known) >= 12
    unknown = [
        ("GET", path) for path in ("/", "/nope", "/v1/models/nope/rollout", "/healthz", "/healthz/live/", "/-/x")
    ]
    seen, bodies = set(), set()
    async with connected(guarded_app) as client:
        for method, path in known + unknown:
            for headers in BAD:
                answer = await client.request(
                    method,
                    path,
                    headers={"X-Request-Id": "a", "X-Request-Timeout": "nonsense", **headers},
                    content=b"{" if method == "POST" else None,
                )
                shown = {name: value for name, value in answer.headers.items() if name != "connection"}
                seen.add((answer.status_code, tuple(sorted(shown.items()))))
                bodies.add((method == "HEAD", answer.content))
    assert len(seen) == 1
    assert {body for head, body in bodies if head} <= {b""}
    (body,) = {body for head, body in bodies if not head}
    assert orjson.loads(body)["code"] == "unauthorized"
    status, headers_of_all = seen.pop()
    assert status == 401
    assert dict(headers_of_all)["www-authenticate"].startswith("Bearer")
    assert service.detectors["checkout"].calls == 0
    assert service.orders == []


@pytest.mark.parametrize("scope", Scope)
async def test_a_key_without_the_scope_learns_nothing_of_what_is_there(
    guarded_app: FastAPI, service: FakeService, connected: Connected, scope: Scope
) -> None:
    """403 for what exists and what does not alike, and nothing happens."""
    pairs = {
        Scope.ADMIN: ("/v1/models/checkout/promote", "/v1/models/nope/promote", "/v1/models/a/b/rollback"),
        Scope.PREDICT: ("/v1/models/checkout/detect", "/v1/models/nope/detect", "/v1/detect", "/docs", "/nope", "/"),
        Scope.METRICS: ("/metrics",),
    }
    async with connected(guarded_app) as client:
        for wanted, paths in pairs.items():
            answers = [await client.post(path, headers=bearer(TEXTS[scope])) for path in paths]
            if scope is wanted:
                assert {answer.status_code for answer in answers} & {401, 403} == set()
            else:
                bodies = {(a.status_code, a.json()["code"], a.json()["detail"]) for a in answers}
                assert len(bodies) == 1
                assert bodies.pop()[:2] == (403, "forbidden")
    assert service.orders == []


@pytest.mark.parametrize(
    "headers",
    [
        bearer(TEXTS[Scope.PREDICT]),
        {"Authorization": f"bearer   {TEXTS[Scope.PREDICT]}"},
        {"X-Api-Key": TEXTS[Scope.PREDICT]},
        {"x-api-key": f" {TEXTS[Scope.PREDICT]} "},
        {"X-Api-Key": TEXTS[Scope.PREDICT], **bearer(TEXTS[Scope.PREDICT])},
    ],
)
async def test_both_headers_carry_a_key(
    guarded_app: FastAPI, service: FakeService, connected: Connected, headers: dict[str, str]
) -> None:
    """One of them, or both with the same; the key's id goes with the request, its secret does not."""
    async with connected(guarded_app) as client:
        answer = await client.post("/v1/detect", content=JPEG, headers={"content-type": "image/jpeg", **headers})
    assert answer.status_code == 200, answer.text
    (context,) = service.detectors["checkout"].contexts
    assert context.key_id == ISSUED[Scope.PREDICT][0].key_id
    assert TEXTS[Scope.PREDICT].rpartition("_")[2] not in repr(context)


async def test_scopes_open_what_is_theirs(guarded_app: FastAPI, service: FakeService, connected: Connected) -> None:
    """The admin key of the settings is one of them; an admin may read what it changes, and is named in the audit."""
    async with connected(guarded_app) as client:
        for text in (TEXTS[Scope.ADMIN], ADMIN_KEY):
            assert (
                await client.post("/v1/models/checkout/promote", json={"version": "2"}, headers=bearer(text))
            ).status_code == 200
            for path in ("/v1/models", "/v1/models/checkout", "/v1/models/checkout/rollout"):
                assert (await client.get(path, headers=bearer(text))).status_code == 200
        assert (await client.get("/metrics", headers=bearer(TEXTS[Scope.METRICS]))).status_code == 200
        assert (await client.get("/docs", headers=bearer(TEXTS[Scope.PREDICT]))).status_code == 200
        assert (await client.get("/nope", headers=bearer(TEXTS[Scope.PREDICT]))).status_code == 404
    assert service.who == [ISSUED[Scope.ADMIN][0].key_id, "admin_key"]


async def test_probes_and_the_webhook_take_no_key(guarded_app: FastAPI, connected: Connected) -> None:
    """A kubelet has none, and MLflow signs; another method on the webhook's path is a stranger's."""
    async with connected(guarded_app) as client:
        for path in OPEN:
            assert (await client.get(path)).status_code == 200
            assert (await client.get(path, headers=bearer(WRONG))).status_code == 200
        assert (await client.post(HOOK_PATH, json={})).json()["code"] == "invalid_signature"
        assert (await client.get(HOOK_PATH)).json()["code"] == "unauthorized"


async def test_without_its_secret_the_webhook_is_a_path_like_any(
    tmp_path: Path, service: FakeService, connected: Connected
) -> None:
    """There is no such route, so it needs a key like what does not exist."""
    settings = Settings(home=tmp_path, host="192.0.2.7")
    async with connected(create_app(service, settings)) as client:
        assert (await client.post(HOOK_PATH, json={})).json()["code"] == "unauthorized"


async def test_anonymous_clients_may_detect_and_nothing_else(
    tmp_path: Path, service: FakeService, connected: Connected
) -> None:
    """Where the settings say so; whatever key they send along, clients of other services must send some."""
    app = guarded(tmp_path, service, anonymous_predict=True)
    body = {"content": JPEG, "headers": {"content-type": "image/jpeg"}}
    async with connected(app) as client:
        assert (await client.post("/v1/detect", **body)).status_code == 200  # type: ignore[arg-type]
        for headers in (bearer(WRONG), bearer(TEXTS[Scope.METRICS]), {"X-Api-Key": "sk-of-somebody-else"}):
            answer = await client.post("/v1/detect", content=JPEG, headers={"content-type": "image/jpeg", **headers})
            assert answer.status_code == 200
        assert (await client.get("/nope")).status_code == 404
        assert (await client.get("/v1/models/checkout/rollout")).status_code == 200
        for method, path in (("GET", "/metrics"), ("POST", "/v1/models/checkout/rollback"), ("POST", "/v1/faults")):
            assert (await client.request(method, path)).status_code == 401
            assert (await client.request(method, path, headers=bearer(TEXTS[Scope.PREDICT]))).status_code == 403
        assert (await client.get("/metrics", headers=bearer(TEXTS[Scope.METRICS]))).status_code == 200


async def test_beyond_loopback_keys_are_in_force_without_any_file(
    tmp_path: Path, service: FakeService, connected: Connected
) -> None:
    """Nobody gets in but the admin key, even where nobody read the file."""
    app = create_app(service, Settings(home=tmp_path, host="192.0.2.7", admin_key=SecretStr(ADMIN_KEY)))
    async with connected(app) as client:
        assert (await client.post("/v1/detect", content=JPEG)).status_code == 401
        assert (await client.get("/v1/models", headers=bearer(ADMIN_KEY))).status_code == 200


async def test_on_loopback_without_keys_nobody_needs_one(client: httpx.AsyncClient) -> None:
    """And one that is sent does no harm."""
    headers = {"content-type": "image/jpeg", **bearer(WRONG)}
    assert (await client.post("/v1/detect", content=JPEG, headers=headers)).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


async def test_limits_are_entered_and_left_once_a_request(
    tmp_path: Path, service: FakeService, connected: Connected
) -> None:
    """Also where the route refuses; a key that is over its limit hears when to come back."""
    limits = FakeLimits()
    app = guarded(tmp_path, service, limits=limits)
    async with connected(app) as client:
        headers = bearer(TEXTS[Scope.PREDICT])
        assert (await client.post("/v1/detect", content=b"text", headers=headers)).status_code in {400, 415}
        assert (await client.get("/nope", headers=headers)).status_code == 404
        assert (await client.get("/nope", headers=bearer(WRONG))).status_code == 401
        assert (await client.get("/metrics", headers=headers)).status_code == 403
        assert (await client.get("/healthz/ready", headers=headers)).status_code == 200
        assert (limits.seen, limits.inside) == ([ISSUED[Scope.PREDICT][0].key_id] * 2, 0)
        limits.full = True
        answer = await client.get("/nope", headers=headers)
    assert (answer.status_code, answer.headers["retry-after"], limits.inside) == (429, "7", 0)


async def test_limits_are_left_when_a_client_leaves(tmp_path: Path, service: FakeService) -> None:
    """A cancelled request holds no place."""
    limits = FakeLimits()
    app = guarded(tmp_path, service, limits=limits)
    inside = asyncio.Event()

    async def wait(_: int) -> None:
        inside.set()
        await asyncio.Event().wait()

    service.detectors["checkout"].before = wait
    headers = [(b"authorization", b"Bearer " + TEXTS[Scope.PREDICT].encode()), (b"content-type", b"image/jpeg")]
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/detect", "raw_path": b"/v1/detect", "query_string": b"",
        "headers": headers, "root_path": "", "scheme": "http", "server": ("127.0.0.1", 1), "http_version": "1.1",
    }  # fmt: skip
    sent = [{"type": "http.request", "body": JPEG, "more_body": False}]

    async def receive() -> Any:
        return sent.pop() if sent else await asyncio.Event().wait()

    async def send(_: Any) -> None:
        pass

    task = asyncio.create_task(app(scope, receive, send))
    await asyncio.wait_for(inside.wait(), 30)
    assert limits.inside == 1
    task.cancel()
    await asyncio.wait({task})
    assert limits.inside == 0


SEGMENTS = st.sampled_from(
    ["v1", "models", "checkout", "promote", "rollback", "detect", "rollout", "faults", "metrics", "healthz", "live",
     "ready", "", ".", "..", "promote\n", "metrics\n", "PROMOTE", "promote ", "x", "%2e", "\\", "hooks", "mlflow"]
)  # fmt: skip
PATHS = st.lists(SEGMENTS, max_size=6).map(lambda parts: "/" + "/".join(parts)) | st.sampled_from(
    [
        f"/v1/models/{model}/{action}{end}"
        for model in ("x", " ", "\n")
        for action in ("promote", "detect")
        for end in ("", "\n")
    ]
)


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Return an application with every route that there is."""
    return guarded(tmp_path_factory.mktemp("home"), FakeService("checkout"))


@given(path=PATHS, method=st.sampled_from(["GET", "POST", "HEAD"]))
def test_whatever_a_route_matches_needs_the_route_s_own_scope(whole: FastAPI, path: str, method: str) -> None:
    """However a path is written, the guard takes it for the route that the router takes it for."""
    scope: dict[str, Any] = {"type": "http", "path": path, "method": method, "root_path": "", "headers": []}
    reached = [route for route in routes_of(whole) if route.matches(scope)[0] is Match.FULL]
    if not reached:
        return
    (route,) = reached
    wanted = scopes_for(path.removesuffix("\n"))
    if route.path in {"/metrics", *OPEN}:
        assert wanted == ({Scope.METRICS} if route.path == "/metrics" else {Scope.PREDICT})
    elif route.path.endswith(("/promote", "/rollback", "/faults")):
        assert wanted == {Scope.ADMIN}
    elif route.path.endswith("/detect"):
        assert wanted == {Scope.PREDICT}
    else:
        assert Scope.PREDICT in wanted


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"cookie"]), st.binary(max_size=20))))
def test_any_headers_carry_one_key_or_none(headers: list[tuple[bytes, bytes]]) -> None:
    """Of several that differ none counts; what a gateway puts into Authorization is no key."""
    text = credential_of(headers)
    keyed = [
        value
        for name, value in headers
        if name == b"x-api-key" or (name == b"authorization" and value.partition(b" ")[0].lower() == b"bearer")
    ]
    if not keyed:
        assert text == b""
    if text:
        assert all(text in value for value in keyed)


def test_the_first_decision_is_about_the_key_alone() -> None:
    """A key with all scopes opens all; one with none opens nothing."""
    everything, text = issue("all", set(Scope), 0.0)
    file = AccessFile(Path("nowhere"), demanded=True, local=[everything])
    guard = Guard(file, anonymous_predict=False, webhook=False, now=lambda: 1.0)
    for path in ("/metrics", "/v1/detect", "/v1/models/x/promote", "/v1/faults", "/nope"):
        scope = {"path": path, "method": "GET", "headers": [(b"x-api-key", text.encode())]}
        assert guard.admit(scope) is everything
        beside = [(b"authorization", b"Basic eDp5"), (b"x-api-key", text.encode())]
        assert guard.admit({**scope, "headers": beside}) is everything
        with pytest.raises(UnauthorizedError):
            guard.admit({**scope, "headers": []})
    assert AccessKeys([everything]).find(b"", 1.0) is None
    mere, mere_text = issue("mere", {Scope.METRICS}, 0.0)
    guard = Guard(
        AccessFile(Path("nowhere"), demanded=True, local=[mere]),
        anonymous_predict=False,
        webhook=False,
        now=lambda: 1.0,
    )
    with pytest.raises(ForbiddenError):
        guard.admit({"path": "/", "method": "GET", "headers": [(b"x-api-key", mere_text.encode())]})


async def test_a_damaged_access_file_shows_in_the_probe(
    tmp_path: Path, service: FakeService, connected: Connected
) -> None:
    """Requests are taken, and whoever watches learns that the file must be mended."""
    (tmp_path / "access.json").write_bytes(b"{")
    settings = Settings(home=tmp_path)
    access = AccessFile.of(settings)
    access.load()
    async with connected(create_app(service, settings, access=access)) as client:
        answer = await client.get("/healthz/ready")
    assert answer.status_code == 200
    assert "damaged" in answer.json()["access"]
    assert str(tmp_path) not in answer.text
    assert orjson.loads(answer.content)["status"] == "ready"
