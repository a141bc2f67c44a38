"""A service of our own for one measurement: started on a free port with a home folder of its own, and ended with it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

START_DEADLINE_S = 300.0
"""The first start converts the demo detector."""
STOP_DEADLINE_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


class ServiceError(Exception):
    """The service did not start; the message holds the end of what it wrote."""


@contextlib.contextmanager
def own_service(*arguments: str) -> Iterator[str]:
    """Run ``steelyard serve`` with ``arguments`` while the block runs; gives its URL.

    Raises ServiceError where it ends by itself or is not ready in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="steelyard-load-") as home:
        log = Path(home) / "service.log"
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command on our own Python
                [sys.executable, "-m", "serve.cli", "serve", "--port", str(port), *arguments],
                cwd=ROOT,
                env={**os.environ, "STEELYARD_HOME": str(Path(home) / "home"), "STEELYARD_HOST": "127.0.0.1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        if _ready(port):
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    msg = f"the service on port {port} did not become ready:\n{tail}"
    raise ServiceError(msg)


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
