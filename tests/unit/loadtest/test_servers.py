"""Servers of our own: started, waited for within bounds, and ended with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import framing
import psutil
import pytest
import servers

ANSWER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"


def request(host: str) -> bytes:
    """Return what a server must answer before it is ready."""
    return framing.build(b"picture", framing="raw", host=host, path="/")


def test_a_server_is_ready_when_it_answers_and_gone_with_its_block() -> None:
    """Its children are found while it runs, and none is left behind."""
    command = [sys.executable, "-c", PARENT, "{port}", ANSWER]
    with servers.program("own", command, path="/", framing="raw", request=request) as server:
        processes = server.processes()
        assert server.ready_s > 0
        assert len(processes) == 2
        assert server.url.startswith("http://127.0.0.1:21")
        # Of the generator's session, so that what gives way gives way to it, and not of its process group.
        assert {os.getsid(each.pid) for each in processes} == {os.getsid(0)}
        assert os.getpgrp() not in {os.getpgid(each.pid) for each in processes}

    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_a_server_that_ends_says_why() -> None:
    """The error holds what it wrote last."""
    command = [sys.executable, "-c", "raise SystemExit('no weights here')", "{port}"]
    with (
        pytest.raises(servers.ServerError, match="no weights here"),
        servers.program("own", command, path="/", framing="raw", request=request),
    ):
        pytest.fail("a server that ended was handed out")


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for readiness has a deadline."""
    monkeypatch.setattr(servers, "START_DEADLINE_S", 0.3)
    command = [sys.executable, "-c", "import signal; signal.pause()", "{port}"]
    with (
        pytest.raises(servers.ServerError, match="did not become ready"),
        servers.program("own", command, path="/", framing="raw", request=request),
    ):
        pytest.fail("a silent server was handed out")


def test_ports_come_in_tens() -> None:
    """Some servers take the ports behind their own too."""
    assert (servers.free_port() - servers.PORTS.start) % 10 == 0


def test_nobody_answers_on_a_closed_port() -> None:
    """Readiness is asked for while nothing listens yet."""
    assert not servers.answers(servers.free_port(), "/healthz/ready")


TOLD = """
import signal
import subprocess
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import servers
servers.end_when_told()
try:
    print("begun", flush=True)
    sys.stdin.read()
finally:
    print("ended", flush=True)
"""


def test_a_program_that_is_told_to_end_runs_what_ends_its_servers() -> None:
    """SIGTERM alone would leave a whole service behind."""
    folder = str(Path(servers.__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", TOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        program.terminate()
        assert program.stdout.readline() == "ended\n"
        assert program.wait(20) == 128 + signal.SIGTERM


def test_every_program_that_starts_a_service_ends_it_when_told() -> None:
    """One that did not would leave a replica, Ray and a proxy on the machine."""
    scripts = {path.name: path.read_text() for path in Path(servers.__file__).parent.glob("*.py")}
    starting = {name for name, text in scripts.items() if "steelyard(" in text and "__main__" in text}
    assert {"bench.py", "load.py", "scaling.py", "swap.py"} <= starting
    assert starting == {name for name in starting if "end_when_told()\n    sys.exit(main())" in scripts[name]}
