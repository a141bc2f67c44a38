"""The load command: bounded in count and time, honest about failures, and only against this machine."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import load
import pytest
import uvicorn

from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def test_closed_loop_reports_what_was_answered(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The count bounds the run exactly over all clients; every answer names its version."""
    code = load.main([image(tmp_path), "--url", url, "--clients", "3", "--requests", "30", "--json"])
    (report,) = json.loads(capsys.readouterr().out)["runs"]

    assert code == 0
    assert (report["mode"], report["answered"], report["failed"]) == ("closed", 30, 0)
    assert report["versions"] == {"1": 30}
    assert 0 < report["p50_ms"] <= report["p95_ms"] <= report["p99_ms"] <= report["most_ms"]


def test_open_loop_reports_what_was_offered(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Poisson run sends its requests whatever the answers do, and says at which rate."""
    arguments = [image(tmp_path), "--url", url, "--rate", "200", "--requests", "40", "--json"]
    code = load.main(arguments)
    (report,) = json.loads(capsys.readouterr().out)["runs"]

    assert code == 0
    assert (report["mode"], report["sent"], report["answered"]) == ("open", 40, 40)
    assert 80 < report["offered"] < 500
    assert report["late_p99_ms"] >= 0


def test_a_folder_of_pictures_is_cycled(url: str, tmp_path: Path) -> None:
    """Each picture makes a request of its own length."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(JPEG + b"x" * number)
    options = load.parse([str(tmp_path), "--url", url])

    assert len({len(request) for request in load.build_requests(options, url)}) == 3


def test_failures_are_counted_by_their_code(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused requests are failures with status and code, and the exit code says so."""
    code = load.main([image(tmp_path, b"text"), "--url", url, "--requests", "5", "--warmup", "0"])

    assert code == 1
    assert "400 invalid_image x 5" in capsys.readouterr().out


def test_two_services_take_turns(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs run in alternating order, and their ratio is reported."""
    other = url.replace("127.0.0.1", "localhost")
    code = load.main([image(tmp_path), "--url", url, "--versus", other, "--rounds", "2", "--requests", "5", "--json"])
    printed = json.loads(capsys.readouterr().out)

    assert code == 0
    assert [run["url"] for run in printed["runs"]] == [url, other, other, url]
    assert printed["ratio"] > 0


def test_the_model_names_the_route(tmp_path: Path) -> None:
    """Another model than the first has a path of its own; --path serves other servers."""
    named = load.parse([image(tmp_path), "--model", "a b"])
    (request,) = load.build_requests(named, named.url)
    other = load.parse([image(tmp_path), "--path", "/predict"])

    assert request.startswith(b"POST /v1/models/a%20b/detect HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n")
    assert load.build_requests(other, other.url)[0].startswith(b"POST /predict ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://192.0.2.1:8000"],
        ["--url", "http://example.org"],
        ["--url", "nothing"],
        ["--versus", "http://192.0.2.1:8000"],
        ["--versus", "http://127.0.0.1:8000"],
        ["--clients", "0"],
        ["--rate", "0"],
        ["--rate", "1e9"],
        ["--connections", "0"],
        ["--seconds", "99999"],
        ["--requests", "0"],
        ["--timeout", "0"],
    ],
)
def test_senseless_options_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """Other machines need a word more; every bound has bounds of its own."""
    with pytest.raises(SystemExit) as caught:
        load.parse([image(tmp_path), *arguments])

    assert caught.value.code == 2


def test_a_missing_picture_is_refused(tmp_path: Path) -> None:
    """Nothing is sent without a picture."""
    with pytest.raises(SystemExit):
        load.parse([str(tmp_path / "none.jpg")])


def test_https_and_its_port_are_understood() -> None:
    """A service behind TLS is asked on 443 unless told otherwise."""
    assert load.target_of("https://localhost", 3.0).port == 443
    assert load.target_of("https://localhost:8443", 3.0).tls
    assert load.target_of("http://[::1]:8000", 3.0).host == "::1"
