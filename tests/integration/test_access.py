"""Keys on a running service of two replicas: who gets in, who does not, and how soon a change counts everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import running
import test_service

from serve.home import read_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from running import Service

pytestmark = pytest.mark.long

JPEG = {"Content-Type": "image/jpeg"}
REVOKED_S = 2.0
"""Time within which every replica refuses a key that was revoked."""
REFUSALS = 30
"""Refusals in a row, by new connections, that show that no replica lets a key in any more."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service of two replicas whose home held a key of each scope when it started."""
    folder = tmp_path_factory.mktemp("guarded")
    home = folder / "home"
    for scope in ("predict", "admin", "metrics"):
        add(home, f"the-{scope}", scope)
    started = running.start(
        home, folder / "serve.log", "--replicas", "2", STEELYARD_BACKEND="fake", STEELYARD_POLL_INTERVAL_S="0.5"
    )
    try:
        yield started
    finally:
        running.stop(started)


def access(home: Path, *arguments: str) -> dict[str, Any]:
    """Run ``steelyard access`` with ``arguments`` on the home folder; return its JSON."""
    done = subprocess.run(
        [running.STEELYARD, "access", *arguments, "--json"],
        env=os.environ | {"STEELYARD_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def add(home: Path, name: str, scope: str) -> str:
    """Make a key and return its text."""
    text: str = access(home, "add", name, "--scope", scope)["key"]
    return text


def key(service: Service, scope: str) -> dict[str, str]:
    """Return the header with a new secret of the service's own key of that scope, once every replica takes it."""
    text = access(service.home, "rotate", f"the-{scope}")["key"]
    headers = {"X-Api-Key": text}
    settled(service, headers, path="/openapi.json", allowed=True)
    return headers


def settled(service: Service, headers: dict[str, str], *, path: str, allowed: bool, within_s: float = 60.0) -> float:
    """Wait until REFUSALS new connections in a row are (not) refused with 401; return when the first of them was."""
    deadline = time.monotonic() + within_s
    streak, since = 0, time.monotonic()
    with httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=30) as client:
        while streak < REFUSALS:
            assert time.monotonic() < deadline, f"still not {'allowed' if allowed else 'refused'} everywhere"
            asked = time.monotonic()
            status = client.get(service.url + path, headers=headers).status_code
            if (status != 401) is allowed:
                since = asked if streak == 0 else since
                streak += 1
            else:
                streak = 0
    return since


def test_without_a_key_nothing_but_the_probes_answers(guarded: Service) -> None:
    """One 401 for all, whatever the address; nothing that listens does so beyond loopback with keys either."""
    for path in ("/healthz/live", "/healthz/ready"):
        assert httpx.get(guarded.url + path, timeout=30).status_code == 200
    bodies = set()
    for method, path in (
        ("POST", "/v1/detect"),
        ("GET", "/v1/models"),
        ("GET", "/docs"),
        ("GET", "/metrics"),
        ("GET", "/nope"),
        ("POST", "/v1/models/checkout/promote"),
        ("POST", "/v1/models/nope/rollback"),
    ):
        for headers in ({}, {"X-Api-Key": "sy_unknown234_00"}, {"Authorization": "Bearer x"}):
            answer = httpx.request(method, guarded.url + path, headers=headers | {"X-Request-Id": "a"}, timeout=30)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            bodies.add(answer.content)
    assert len(bodies) == 1
    test_service.test_nothing_listens_beyond_loopback(guarded)


def test_what_the_proxy_answers_itself_tells_nothing(guarded: Service) -> None:
    """HAProxy's health check says one word, its list of routes the constants of the source, in both spellings."""
    health = httpx.get(f"{guarded.url}/-/healthz", timeout=30)
    assert (health.status_code, health.text) == (200, "success")
    routes = httpx.get(f"{guarded.url}/-/routes", timeout=30)
    assert routes.json() == {"/": "steelyard"}
    assert httpx.get(f"{guarded.url}/-/metrics", timeout=30).status_code == 401


def test_scopes_hold(guarded: Service) -> None:
    """Each key opens its own, in either header, and gets 403 for the rest, existing or not."""
    predict, admin, metrics = (key(guarded, scope) for scope in ("predict", "admin", "metrics"))
    bearer = {"Authorization": f"Bearer {predict['X-Api-Key']}"}
    for headers in (predict, bearer):
        answer = httpx.post(f"{guarded.url}/v1/detect", content=guarded.tray, headers=JPEG | headers, timeout=30)
        assert answer.status_code == 200, answer.text
    for headers, path, status in (
        (metrics, "/metrics", 200),
        (predict, "/metrics", 403),
        (metrics, "/v1/models", 403),
        (metrics, "/nope", 403),
        (predict, "/nope", 404),
        (admin, "/v1/models/checkout/rollout", 200),
        (admin, "/docs", 403),
    ):
        assert httpx.get(guarded.url + path, headers=headers, timeout=30).status_code == status
    for model in ("checkout", "nope"):
        refused = httpx.post(
            f"{guarded.url}/v1/models/{model}/promote", json={"version": "1"}, headers=predict, timeout=30
        )
        assert refused.status_code == 403
    unlike = httpx.get(f"{guarded.url}/v1/models", headers=predict | {"Authorization": "Bearer x"}, timeout=30)
    assert unlike.status_code == 401


def test_commands_on_the_home_need_no_ceremony(guarded: Service) -> None:
    """They send the key that the service left in its home, where only its owner reads; it is a key like others."""
    assert guarded.cli("rollout", "checkout").returncode == 0
    shown = guarded.cli("models", "--json")
    assert shown.returncode == 0, shown.stderr
    record = read_record(guarded.home)
    assert record is not None
    assert record.key is not None
    assert (guarded.home / "service.json").stat().st_mode & 0o077 == 0
    refused = guarded.cli("models", "--url", guarded.url)
    assert refused.returncode == 2
    assert "API key" in refused.stderr
    for process in test_service.everything_of(guarded):
        try:
            told = " ".join(process.cmdline()) + " ".join(process.environ().values())
        except psutil.NoSuchProcess:  # HAProxy is replaced by a successor now and then
            continue
        assert record.key.rpartition("_")[2] not in told


def test_a_rotation_fails_no_request_and_a_revoked_key_ends_within_two_seconds(guarded: Service) -> None:
    """Clients with the old and the new secret go on through the overlap; then the key goes, at every replica."""
    old = add(guarded.home, "till", "predict")
    settled(guarded, {"X-Api-Key": old}, path="/openapi.json", allowed=True)
    texts, stop = [old], threading.Event()
    failed: list[tuple[int, int]] = []
    answered: list[tuple[int, int]] = []

    def post(index: int) -> None:
        until = time.monotonic() + 60
        with httpx.Client(timeout=30) as client:
            while not stop.is_set() and time.monotonic() < until:
                text = texts[min(index, len(texts) - 1)]
                answer = client.post(
                    f"{guarded.url}/v1/detect", content=guarded.tray, headers={**JPEG, "X-Api-Key": text}
                )
                (answered if answer.status_code == 200 else failed).append((index, answer.status_code))

    threads = [threading.Thread(target=post, args=(index,), daemon=True) for index in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)  # requests under way, in real time
        new = access(guarded.home, "rotate", "till", "--overlap", "1h")["key"]
        settled(guarded, {"X-Api-Key": new}, path="/openapi.json", allowed=True)
        texts.append(new)
        time.sleep(2.0)  # both secrets in use, in real time
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=40)
    assert failed == []
    assert {index for index, _ in answered} == {0, 1}
    assert len(answered) >= 20

    access(guarded.home, "revoke", "till")
    revoked = time.monotonic()
    for text in (old, new):
        assert settled(guarded, {"X-Api-Key": text}, path="/openapi.json", allowed=False) - revoked <= REVOKED_S


def test_a_file_that_is_damaged_or_gone_opens_nothing(guarded: Service) -> None:
    """The last good keys stay in force, the probe says so, and the mended file counts again."""
    file = guarded.home / "access.json"
    predict = key(guarded, "predict")
    good = file.read_bytes()
    try:
        for damage in (b"{", None):
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage)
            noted(guarded, "access file")
            assert httpx.get(f"{guarded.url}/v1/models", headers=predict, timeout=30).status_code == 200
            assert httpx.get(f"{guarded.url}/v1/models", timeout=30).status_code == 401
    finally:
        file.write_bytes(good)
    noted(guarded, None)


def noted(service: Service, words: str | None, *, within_s: float = 60.0) -> None:
    """Wait until the probe of every replica (does not) mention the access file."""
    deadline, streak = time.monotonic() + within_s, 0
    while streak < REFUSALS // 4:
        assert time.monotonic() < deadline
        note = httpx.get(f"{service.url}/healthz/ready", timeout=30).json().get("access")
        assert note is None or str(service.home) not in note
        streak = streak + 1 if (words in note if words and note else words == note) else 0
