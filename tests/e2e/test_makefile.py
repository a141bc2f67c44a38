"""What ``make`` says to somebody who lacks something, and what ``make serve MODEL=...`` does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from running import free_port

from models import demo

ROOT = Path(__file__).parents[2]
MAKE = "/usr/bin/make"


def test_a_wrong_python_is_named_in_one_line(tmp_path: Path) -> None:
    """Before anything is installed, make says which Python it found and what to type instead."""
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o700)
    command = [MAKE, "--no-print-directory", "serve", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[0].startswith("Steelyard needs Python 3.11 or newer; ")
    assert "Python 3.9.2" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_lists_every_target() -> None:
    """``make`` alone explains itself."""
    shown = subprocess.run([MAKE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    for target in ("serve", "test", "check", "faults", "bench", "help"):
        assert f"{target} " in shown


@pytest.mark.long
def test_a_weights_file_is_served_under_its_stem_and_registered_once(tmp_path: Path) -> None:
    """``make serve MODEL=file REPLICAS=2`` serves it on two replicas; the second start finds it registered."""
    weights = tmp_path / "my-trays.pt"
    weights.write_bytes(demo.weights_path(2).read_bytes())
    port = free_port()
    environment = os.environ | {"STEELYARD_HOME": str(tmp_path / "home"), "STEELYARD_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    for words in ("registered", "is that file already"):
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [MAKE, "--no-print-directory", "serve", f"MODEL={weights}", "REPLICAS=2"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                rollout = _rollout_when_ready(process, url, log)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)
        assert words in log.read_text()
        assert rollout["serving"] == "1"
        assert len(rollout["replicas"]) == 2


def _rollout_when_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> dict[str, object]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = httpx.get(f"{url}/v1/models/my-trays/rollout", timeout=5)
            if answer.status_code == 200 and len(answer.json()["replicas"]) == 2:
                found: dict[str, object] = answer.json()
                return found
        except httpx.HTTPError:
            pass
        time.sleep(0.5)  # a real service starts in real time; nothing here can be injected
    raise AssertionError(log.read_text(errors="replace")[-3000:])
