"""A real service in a process of its own, and what the tests ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from models import demo
from models.weights.mlflow_registry import open_registry
from serve.cluster import processes_of
from serve.home import remembered_folder
from serve.ports import free_ports
from serve.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from models.weights.registry import Registry

STEELYARD = Path(sys.executable).with_name("steelyard")


@dataclass(frozen=True)
class Service:
    """A running service: its URL, its home, its process and its log."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def tray(self) -> bytes:
        """Return the sample tray as JPEG."""
        return demo.SAMPLE_TRAY.read_bytes()

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables under which the command line finds this service."""
        return os.environ | {"STEELYARD_HOME": str(self.home)}

    def cli(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``steelyard`` with ``arguments`` against this service."""
        return subprocess.run(
            [STEELYARD, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def registry(self) -> Registry:
        """Open the service's registry as its command line does."""
        settings = load_settings(home=self.home)
        return open_registry(settings.tracking_uri)

    def detect(self) -> dict[str, Any]:
        """Post the sample tray and return the answer."""
        answer = httpx.post(
            f"{self.url}/v1/detect", content=self.tray, headers={"Content-Type": "image/jpeg"}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def rollout(self) -> dict[str, Any]:
        """Return the state of the rollout."""
        answer = httpx.get(f"{self.url}/v1/models/checkout/rollout", timeout=30)
        assert answer.status_code == 200, answer.text
        state: dict[str, Any] = answer.json()
        return state

    def promote(self, version: str) -> httpx.Response:
        """Ask for ``version`` over HTTP without waiting for the replicas."""
        return httpx.post(f"{self.url}/v1/models/checkout/promote", json={"version": version}, timeout=30)

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of the replicas."""
        folder = remembered_folder(self.home)
        assert folder is not None
        return [each for each in processes_of(folder) if "ServeReplica" in " ".join(each.cmdline())]

    def actor_pid(self) -> int | None:
        """Return the process of the rollout actor, None while there is none."""
        folder = remembered_folder(self.home)
        assert folder is not None
        for process in processes_of(folder):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end while the list is read
                if "RolloutActor" in " ".join(process.cmdline()):
                    return process.pid
        return None

    def arm(self, point: str, action: str) -> None:
        """Arm a fault point of the rollout."""
        answer = httpx.post(f"{self.url}/v1/faults", json={"point": point, "action": action}, timeout=30)
        assert answer.status_code == 200, answer.text

    def wait_until(self, true: Callable[[dict[str, Any]], bool], *, within_s: float = 60.0) -> dict[str, Any]:
        """Poll the rollout until ``true`` of it and return it."""
        deadline = time.monotonic() + within_s
        rollout: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                rollout = self.rollout()
            except (httpx.HTTPError, AssertionError):
                rollout = {}
            if rollout and true(rollout):
                return rollout
            time.sleep(0.1)  # the service under test lives in real time
        msg = f"the rollout did not get there within {within_s} s: {rollout}"
        raise AssertionError(msg)

    def settle(self, version: str) -> None:
        """Bring every replica to ``version``, whatever an earlier test left behind."""
        self.wait_until(lambda rollout: _serves(rollout, version) or self.promote(version).status_code == 200)
        self.wait_until(lambda rollout: _serves(rollout, version))


def _serves(rollout: dict[str, Any], version: str) -> bool:
    everyone = bool(rollout["replicas"]) and all(r["version"] == version for r in rollout["replicas"])
    return rollout["state"] in {"serving", "probation"} and rollout["serving"] == version and everyone


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on now."""
    return free_ports(1)[0]


def start(home: Path, log: Path, *arguments: str, within_s: float = 240.0, **environment: str) -> Service:
    """Start ``steelyard serve`` on a free port and return it once it is ready."""
    port = free_port()
    variables = os.environ | {"STEELYARD_HOME": str(home), "STEELYARD_PORT": str(port)} | environment
    with log.open("ab") as output:
        process = subprocess.Popen(
            [STEELYARD, "serve", *arguments],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    service = Service(f"http://127.0.0.1:{port}", home, process, log)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{service.url}/healthz/ready", timeout=2).status_code == 200:
                return service
        except httpx.HTTPError:
            pass
        time.sleep(0.25)  # the service under test lives in real time
    stop(service)
    msg = f"the service did not become ready:\n{log.read_text(errors='replace')[-4000:]}"
    raise AssertionError(msg)


def stop(service: Service, *, within_s: float = 30.0) -> float:
    """Ask the service to end as Ctrl-C does and return the seconds it took."""
    begun = time.monotonic()
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGINT)
        try:
            service.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            os.killpg(service.process.pid, signal.SIGKILL)
            raise
    return time.monotonic() - begun


def running_ones(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of ``processes`` that still run."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def audit(service: Service) -> list[dict[str, Any]]:
    """Return the audit records of the service, oldest first."""
    lines: list[dict[str, Any]] = []
    for path in sorted((service.home / "audit").glob("*.jsonl")):
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    return lines


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a running service that every test of the session shares; a test that changes it must say what it needs."""
    folder = tmp_path_factory.mktemp("service")
    started = start(
        folder / "home",
        folder / "serve.log",
        "--replicas",
        "2",
        STEELYARD_ALLOW_FAULT_INJECTION="true",
        STEELYARD_POLL_INTERVAL_S="0.5",
    )
    try:
        yield started
    finally:
        stop(started)
