"""A Ray of our own on this machine: start it, connect, deploy, and end every process of it.

It is started by a child process (``serve/head.py``), so that it can come up while this one imports and registers, and
with an environment by which each of its processes is recognised. Ray is imported only inside functions: what it reads
from the environment must stand there first.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.errors import SettingsError, SteelyardError
from serve.environment import BACKSTOP_S, ray_environment, serve_environment, token_path
from serve.head import LAUNCHER_VARIABLE, HeadOptions, command
from serve.ports import LOOPBACK, Ports, choose_ports
from serve.processes import end, processes_of
from serve.settings import SECRETS, available_cores, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.settings import Settings

APPLICATION: Final = "steelyard"
PREFIX: Final = "steelyard-"
"""How the names of the folders begin that hold a cluster's sockets and files."""
OBJECT_STORE_BYTES: Final = 512 * 1024 * 1024
"""Shared memory through which weights reach the replicas; taken from the machine only as far as it is used."""

START_DEADLINE_S: Final = 60.0
POLL_S: Final = 0.05
SHUTDOWN_DEADLINE_S: Final = 4.5
"""Time in which the replicas must have answered what they hold when the service stops (seconds)."""

_ERROR_LINE: Final = re.compile(r"^\s*(?:[\w.]+\.)?\w*(?:Error|Exception|Exit): (.+)$", re.MULTILINE)
_LONGEST_TEMPORARY: Final = 12
_POD_FOLDER: Final = Path("/tmp/steelyard")  # noqa: S108 - a pod runs one service, and nobody else


class ClusterError(SteelyardError):
    """Ray or Ray Serve did not start, or ended on its own."""

    code = "cluster_failed"


class LocalCluster:
    """One Ray on this machine. Use from the main thread: Linux ties the child's life to the thread that made it."""

    def __init__(self, settings: Settings, *, log: Path) -> None:
        """Prepare nothing yet. ``log`` is the file that takes what the starting child prints."""
        self._settings = settings
        self._log = log
        self._ports = choose_ports()
        self._ray: subprocess.Popen[bytes] | None = None
        self.folder = make_folder()

    @property
    def ports(self) -> Ports:
        """Return the ports that this cluster was given."""
        return self._ports

    def start(self) -> None:
        """Start Ray's processes and return at once. This process's environment changes with it."""
        token = token_path(self.folder)
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        (self.folder / "p").mkdir(mode=0o700)
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(ray_environment(self._settings, self.folder, self._ports))
        with self._log.open("wb") as log:
            self._ray = subprocess.Popen(  # noqa: S603 - our own Python, our own arguments
                command(self._options()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Of its own process group, which no terminal interrupts, but of our session: where the kernel shares
                # the processors out by sessions, what gives way in another one keeps this one waiting all the same.
                process_group=0,
                env={**os.environ, LAUNCHER_VARIABLE: str(os.getpid())},
            )

    def connect(self) -> None:
        """Wait until Ray answers and become its driver. Raises ClusterError."""
        import ray  # noqa: PLC0415 - not before its environment stands

        self._wait(lambda: _listens(self._ports.gcs), "Ray")
        # Asked before its node is there, ray.init looks again only after a whole second.
        self._wait(lambda: _has_node(self._ports.gcs), "Ray's node")
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            ray.init(
                address=f"{LOOPBACK}:{self._ports.gcs}",
                namespace=APPLICATION,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            self.check()
            msg = f"cannot connect to the Ray just started ({type(error).__name__}): read {self._log}"
            raise ClusterError(msg) from error

    def check_gpus(self) -> None:
        """Refuse replicas that would wait for GPUs for ever. Raises SettingsError."""
        import ray  # noqa: PLC0415 - not before its environment stands

        fewest = self._settings.min_replicas or self._settings.replicas
        wanted, found = self._settings.gpus * fewest, ray.cluster_resources().get("GPU", 0.0)
        if wanted > found:
            msg = (
                f"{fewest} replicas of {self._settings.gpus:g} GPUs need {wanted:g}, and this machine has {found:g}: "
                "lower STEELYARD_GPUS or the number of replicas; 0 serves on the CPU"
            )
            raise SettingsError(msg)

    def start_serve(self, *, logs: Path) -> None:
        """Start Ray Serve's controller and HAProxy. ``logs`` is the folder of their log files. Raises ClusterError."""
        from ray import serve  # noqa: PLC0415 - not before its environment stands

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={
                    "host": LOOPBACK,
                    "port": self._settings.port,
                    "request_timeout_s": self._settings.request_timeout_s + BACKSTOP_S,
                },
                logging_config={"encoding": "JSON", "logs_dir": str(logs), "enable_access_log": False},
            )
        except Exception as error:
            self.check()
            msg = f"Ray Serve did not start ({type(error).__name__}): read the logs in {logs}"
            raise ClusterError(msg) from error

    def deploy(self, application: Any) -> None:
        """Hand ``application`` to Ray Serve and return without waiting for its replicas. Raises ClusterError.

        It waits for the controller that ``start_serve``, on another thread, has made, but not for HAProxy.
        """
        from ray import serve  # noqa: PLC0415 - not before its environment stands

        self._wait(_has_controller, "Ray Serve's controller")
        serve.run_many(
            [serve.RunTarget(application, name=APPLICATION, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def failure(self) -> str | None:
        """Return why the deployed application cannot run, or None while it may."""
        from ray import serve  # noqa: PLC0415 - not before its environment stands

        overview = serve.status().applications.get(APPLICATION)
        if overview is None or overview.status not in {"DEPLOY_FAILED", "UNHEALTHY"}:
            return None
        deployments = [reason_of(each.message) for each in overview.deployments.values() if each.message]
        return "; ".join(deployments) or reason_of(overview.message)

    def check(self) -> None:
        """Raise ClusterError if Ray's own process has ended."""
        if self._ray is not None and self._ray.poll() is not None:
            msg = f"Ray ended with exit code {self._ray.returncode}: read {self._log}"
            raise ClusterError(msg)

    def stop(self) -> None:
        """Stop the replicas in order, then end every process of this cluster; within 10 s whatever happens."""
        if self._ray is not None:
            processes = processes_of(self.folder)
            _within(SHUTDOWN_DEADLINE_S, _leave)
            # Nothing that Ray would still save outlives the service, so its processes need no farewell.
            end([*processes, *processes_of(self.folder)])
            end(processes_of(self.folder))
            self._ray.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, there: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not there():
            self.check()
            if time.monotonic() > deadline:
                msg = f"{what} did not start within {START_DEADLINE_S:.0f} s: read {self._log}"
                raise ClusterError(msg)
            time.sleep(POLL_S)

    def _options(self) -> HeadOptions:
        return HeadOptions(
            folder=str(self.folder / "r"),
            gcs_port=self._ports.gcs,
            metrics_port=self._ports.node_metrics,
            agent_port=self._ports.agent,
            cores=available_cores(),
            object_store_bytes=OBJECT_STORE_BYTES,
        )


def reason_of(message: str) -> str:
    """Return the last error's own words in what Ray Serve says of a failed deployment, else its last line."""
    errors = _ERROR_LINE.findall(message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return errors[-1] if errors else lines[-1] if lines else "no reason was given"


def make_folder() -> Path:
    """Return a new folder, readable by this user only, with a path short enough for unix sockets in it."""
    root = tempfile.gettempdir()
    if len(root) > _LONGEST_TEMPORARY and Path("/tmp").is_dir():  # noqa: S108 - mkdtemp makes it ours alone
        root = "/tmp"  # noqa: S108 - likewise
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))


def _leave() -> None:
    import ray  # noqa: PLC0415 - not before its environment stands
    from ray import serve  # noqa: PLC0415 - likewise

    if ray.is_initialized():
        serve.shutdown()
        ray.shutdown()


def _within(seconds: float, work: Callable[[], None]) -> None:
    def attempt() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def _has_node(port: int) -> bool:
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # noqa: PLC0415 - not before its environment stands
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # noqa: PLC0415 - likewise

    client = GcsClient(address=f"{LOOPBACK}:{port}")
    return bool(client.get_all_node_info(timeout=START_DEADLINE_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE))


def _has_controller() -> bool:
    import ray  # noqa: PLC0415 - not before its environment stands
    from ray.serve._private import constants  # noqa: PLC0415 - likewise

    try:
        ray.get_actor(constants.SERVE_CONTROLLER_NAME, namespace=constants.SERVE_NAMESPACE)
    except ValueError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0


def main() -> None:
    """Print the environment of a cluster's pods, one NAME=value a line; keys and secrets are left to a Secret."""
    parser = argparse.ArgumentParser(prog="python -m serve.cluster", description=main.__doc__)
    parser.add_argument("--print-env", action="store_true", required=True)
    parser.parse_args()
    environment = serve_environment(load_settings(), _POD_FOLDER, Ports())
    for secret in SECRETS:
        environment.pop(f"STEELYARD_{secret.upper()}", None)
    sys.stdout.writelines(f"{name}={value}\n" for name, value in sorted(environment.items()))


if __name__ == "__main__":
    main()
