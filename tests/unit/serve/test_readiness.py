"""Waiting for a service that was just deployed."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serve.ports import free_ports
from serve.readiness import NotReadyError, get_json, wait_until_ready

URL = "http://service"
Answers = dict[str, tuple[int, dict[str, Any]]]


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        """Start at zero."""
        self.now = 0.0

    def clock(self) -> float:
        """Return the seconds slept."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def wait(steps: list[Answers], *, check: Any = lambda: None) -> list[str]:
    """Wait for a service that answers each round of probes with the next of ``steps``; the last one stays."""
    time, rounds = FakeTime(), iter(steps)
    current: Answers = {}

    def get(url: str) -> tuple[int, dict[str, Any]]:
        nonlocal current
        if url.endswith("/healthz/ready"):
            current = next(rounds, current)
        return current.get(url.removeprefix(URL), (0, {}))

    return wait_until_ready(URL, ["checkout"], deadline_s=5.0, check=check, get=get, clock=time.clock, sleep=time.sleep)


def answers(status: int, rollout: dict[str, Any], detail: str = "") -> Answers:
    """Return what one round of probes sees."""
    return {"/healthz/ready": (status, {"detail": detail}), "/v1/models/checkout/rollout": (200, rollout)}


def test_a_service_that_comes_up_says_what_it_serves() -> None:
    """Silence and 503 are waited out."""
    ready = answers(200, {"serving": "2", "desired": "2", "state": "serving"})
    assert wait([{}, answers(503, {"state": "preparing"}), ready]) == ["checkout version 2"]


def test_a_refused_version_is_named_beside_the_one_that_serves() -> None:
    """The old version serves, and whoever starts the service learns why the new one does not."""
    rollout = {"serving": "1", "desired": "2", "state": "rejected", "step": "golden", "reason": "it is blind"}
    assert wait([answers(200, rollout)]) == ["checkout version 1 (version 2 was refused, golden: it is blind)"]


def test_waiting_ends_when_the_only_version_is_refused() -> None:
    """The reason is told at once, not after the deadline."""
    rollout = {"serving": None, "desired": "1", "state": "rejected", "step": "verify", "reason": "one byte is lost"}
    with pytest.raises(NotReadyError, match=r"checkout version 1 may not serve \(verify: one byte is lost\)"):
        wait([answers(503, rollout)])


def test_waiting_ends_at_the_deadline_with_the_reason() -> None:
    """What the probe said last is told."""
    with pytest.raises(NotReadyError, match="not ready after 5 s: the replica is starting"):
        wait([answers(503, {}, "the replica is starting")])


def test_waiting_ends_when_the_check_raises() -> None:
    """A cluster that died is not waited for."""

    def check() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        wait([{}], check=check)


def test_nobody_answering_is_no_error() -> None:
    """The probe of a closed port reports status 0."""
    assert get_json(f"http://127.0.0.1:{free_ports(1)[0]}/healthz/ready") == (0, {})


@pytest.mark.parametrize("key", [None, "sy_local_00"])
def test_a_key_is_sent_where_there_is_one(key: str | None) -> None:
    """The launcher's own, once keys are in force."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("X-Api-Key"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert get_json(f"http://127.0.0.1:{server.server_port}/", key=key) == (200, {})
        thread.join(timeout=10)
    assert seen == [key]
