"""Servers of our own for one measurement: Steelyard and its peers, started on a free port and ended with the block."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cpu
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

START_DEADLINE_S = 300.0
"""The first start of the demo detector converts it."""
STOP_DEADLINE_S = 30.0
POLL_S = 0.1
PORTS = range(21100, 21990, 10)
"""A server gets the first port of a free ten: some take the following ones too."""
ROOT = Path(__file__).resolve().parent.parent


class ServerError(Exception):
    """A server did not start; the message holds the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs. ready_s: seconds from its command to its first answer. processes: finds all that belong to it."""

    name: str
    url: str
    path: str
    framing: str
    ready_s: float
    processes: Callable[[], list[psutil.Process]]


@contextlib.contextmanager
def steelyard(
    *arguments: str, home: Path | None = None, environment: Mapping[str, str] | None = None, model: str | None = None
) -> Iterator[Server]:
    """Run ``steelyard serve`` with ``arguments`` while the block runs.

    Args:
        arguments: of the command.
        home: its home folder, with a registry that holds the models; None makes a fresh one for the demo detector.
        environment: variables beyond this process's own, e.g. settings.
        model: the model to ask; None means the first one.

    Raises ServerError where it ends by itself or is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="steelyard-load-") as folder:
        own = home or Path(folder) / "home"
        port = free_port()
        path = "/v1/detect" if model is None else f"/v1/models/{model}/detect"
        command = [sys.executable, "-m", "serve.cli", "serve", "--port", str(port), *arguments]
        variables = {"STEELYARD_HOME": str(own), "STEELYARD_HOST": "127.0.0.1", **(environment or {})}
        log = Path(folder) / "service.log"
        with _running(command, variables, log) as process:
            ready_s = _wait(process, log, lambda: answers(port, "/healthz/ready"))
            yield Server(
                "steelyard", f"http://127.0.0.1:{port}", path, "raw", ready_s, lambda: cpu.service(own.absolute())
            )


@contextlib.contextmanager
def program(
    name: str, command: Sequence[str], *, path: str, framing: str, request: Callable[[str], bytes]
) -> Iterator[Server]:
    """Run another server while the block runs.

    Args:
        name: for the report.
        command: its command line, in which ``{port}`` stands for the port.
        path: of the route that takes pictures.
        framing: key of ``framing.FRAMINGS``.
        request: makes a whole request to the given host and port; the server is ready when it answers that with 200.

    Raises ServerError where it ends by itself or is not ready in time.
    """
    port = free_port()
    host = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="steelyard-load-") as folder:
        log = Path(folder) / "server.log"
        variables = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "HOME": folder}
        with _running([part.replace("{port}", str(port)) for part in command], variables, log) as process:
            ready_s = _wait(process, log, lambda: _accepts(port, request(host)))
            yield Server(name, f"http://{host}", path, framing, ready_s, lambda: cpu.tree(process.pid))


def end_when_told() -> None:
    """Let SIGTERM end this program as an error would, so that the servers that it has started are ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    """Return a loopback port of which the next nine are free too. Raises ServerError."""
    # Two that start at the same time would find the same ten free.
    for first in random.sample(PORTS, len(PORTS)):
        if all(_is_free(first + offset) for offset in range(10)):
            return first
    msg = f"no ten free ports in a row from {PORTS.start} to {PORTS.stop}; end what holds them"
    raise ServerError(msg)


def answers(port: int, path: str) -> bool:
    """Return whether a GET of ``path`` is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _running(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            # Not a session: see serve/cluster.py. The load generator would wait for the loads of the service.
            process_group=0,
        )
    try:
        yield process
    finally:
        left = cpu.tree(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()


def _wait(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]) -> float:
    """Return the seconds until ``ready``. Raises ServerError."""
    began = time.monotonic()
    while time.monotonic() - began < START_DEADLINE_S and process.poll() is None:
        if ready():
            return time.monotonic() - began
        time.sleep(POLL_S)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
    msg = f"{' '.join(map(str, process.args[:4]))} ... did not become ready:\n{tail}"  # type: ignore[index]
    raise ServerError(msg)


def _accepts(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60.0) as connection:
            connection.sendall(request)
            status = connection.recv(64).split(b" ", 2)
            return len(status) > 1 and status[1] == b"200"
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
