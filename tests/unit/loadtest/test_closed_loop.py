"""The closed-loop load: bounded in count and time, honest about failures, and only against this machine."""

from __future__ import annotations

import importlib
import json
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parents[3] / "loadtest"
sys.path.insert(0, str(FOLDER))
try:
    closed_loop: Any = importlib.import_module("closed_loop")
finally:
    sys.path.remove(str(FOLDER))

JPEG = b"\xff\xd8\xff\xe0 not really"


@pytest.fixture(name="url")
def _url(tmp_path: Path) -> Iterator[str]:
    """Serve the real HTTP edge over a fake service."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(FakeService(), Settings(home=tmp_path)), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.started
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


def image(folder: Path, data: bytes = JPEG) -> str:
    """Write what is posted."""
    (folder / "image.jpg").write_bytes(data)
    return str(folder / "image.jpg")


def test_run_reports_what_was_answered(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The count bounds the run exactly over all clients; every answer names its version."""
    code = closed_loop.main([image(tmp_path), "--url", url, "--clients", "3", "--requests", "30", "--json"])
    (report,) = json.loads(capsys.readouterr().out)["runs"]

    assert code == 0
    assert (report["answered"], report["failed"], report["versions"]) == (30, 0, {"1": 30})
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"] <= report["most_ms"]


def test_failures_are_counted_by_their_code(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused requests are failures with status and code, and the exit code says so."""
    code = closed_loop.main([image(tmp_path, b"text"), "--url", url, "--requests", "5", "--warmup", "0"])

    assert code == 1
    assert "400 invalid_image x 5" in capsys.readouterr().out


def test_two_services_take_turns(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs run in alternating order, and their ratio is reported."""
    other = url.replace("127.0.0.1", "localhost")
    code = closed_loop.main(
        [image(tmp_path), "--url", url, "--versus", other, "--rounds", "2", "--requests", "5", "--json"]
    )
    printed = json.loads(capsys.readouterr().out)

    assert code == 0
    assert [run["url"] for run in printed["runs"]] == [url, other, other, url]
    assert printed["ratio"] > 0


class FakePoster:
    """Moves a clock on at every post, and notes that it was closed."""

    def __init__(self, times: deque[float], step: float) -> None:
        """Keep the clock."""
        self.times = times
        self.step = step
        self.closed = False

    def post(self) -> object:
        """Take ``step`` seconds."""
        self.times.append(self.times[-1] + self.step)
        return closed_loop.Exchange(self.step, 200, "1")

    def close(self) -> None:
        """Note it."""
        self.closed = True


def test_run_ends_when_its_time_is_up() -> None:
    """The duration bounds a run however many requests are left."""
    times = deque([0.0])
    posters: list[FakePoster] = []

    def connect() -> FakePoster:
        """Make a client and keep it."""
        posters.append(FakePoster(times, 0.25))
        return posters[-1]

    report = closed_loop.run(
        "http://127.0.0.1:1", clients=1, seconds=1.0, requests=1000, connect=connect, clock=lambda: times[-1]
    )

    assert (report.answered, report.seconds, report.rate) == (4, 1.0, 4.0)
    assert all(poster.closed for poster in posters)


def test_an_error_of_a_client_ends_the_run() -> None:
    """A bug in a client must not look like a quiet service."""

    class Broken(FakePoster):
        """A client with a bug."""

        def post(self) -> object:
            """Fail."""
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        closed_loop.run(
            "http://127.0.0.1:1", clients=1, seconds=1.0, requests=2, connect=lambda: Broken(deque([0.0]), 0.1)
        )


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0.01, 1))
def test_percentile_is_a_measured_value(values: list[float], share: float) -> None:
    """At least the share of all values lies at or below the percentile, and it is one of them."""
    ordered = sorted(values)
    found = closed_loop.percentile(ordered, share)

    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered) - 1e-9


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://192.0.2.1:8000"],
        ["--url", "http://example.org"],
        ["--url", "nothing"],
        ["--versus", "http://192.0.2.1:8000"],
        ["--versus", "http://127.0.0.1:8000"],
        ["--clients", "0"],
        ["--seconds", "99999"],
        ["--requests", "0"],
    ],
)
def test_senseless_options_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """Other machines need a word more; every bound has bounds of its own."""
    with pytest.raises(SystemExit) as caught:
        closed_loop.parse([image(tmp_path), *arguments])

    assert caught.value.code == 2


def test_a_missing_picture_is_refused(tmp_path: Path) -> None:
    """Nothing is sent without a picture."""
    with pytest.raises(SystemExit):
        closed_loop.parse([str(tmp_path / "none.jpg")])
