"""The process that starts Ray's own ones on this machine: ``python -m serve.head '{...}'``.

``ray start`` does the same by way of the code that launches clusters, whose import takes longer than all of this, and
always starts a dashboard process, for which it then waits; what the service needs of Ray's metrics comes from the
node's agent. Written for Ray 2.60, which is pinned: a test starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LAUNCHER_VARIABLE: Final = "STEELYARD_LAUNCHER"
"""Variable that names the process without which no cluster may be."""

_PR_SET_PDEATHSIG: Final = 1
_NOWHERE: Final = b"127.0.0.1:9"
"""The port that discards: Ray's agent asks every second, with a traceback in its log, until it is told an address."""

WAIT: Final = "import os; os.wait(); raise SystemExit('a process of Ray has ended')"
"""The program that this process becomes in the end."""


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What the node is started with."""

    folder: str
    """Folder of Ray's sockets, logs and session (Ray's temporary folder)."""
    gcs_port: int
    metrics_port: int
    """Port of the node's Prometheus exposition."""
    agent_port: int
    """Port of the agent's HTTP API."""
    cores: int
    """CPUs that Ray may hand out, >= 1."""
    object_store_bytes: int


def command(options: HeadOptions) -> list[str]:
    """Return the command line that starts the node."""
    return [sys.executable, "-m", "serve.head", json.dumps(asdict(options))]


def tie_to_launcher() -> None:
    """Let this process die with the one that started it, by Linux's parent-death signal (prctl(2)).

    Ray ties its own processes to this one in the same way, so that a service killed without warning leaves no cluster.
    Raises SystemExit where the starter, whose id ``STEELYARD_LAUNCHER`` holds, is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[LAUNCHER_VARIABLE]):
            raise SystemExit(1)


def start(options: HeadOptions) -> None:
    """Start GCS and raylet, with the agents that the raylet starts; returns once the node is registered.

    Neither the autoscaler's monitor nor the log monitor, the client server or the dashboard is started.
    """
    from ray._private import ray_constants  # noqa: PLC0415 - imported by the child process only, and slow
    from ray._private.node import Node  # noqa: PLC0415 - likewise
    from ray._private.parameter import RayParams  # noqa: PLC0415 - likewise

    class Head(Node):  # type: ignore[misc]
        """A head node without a dashboard."""

        def start_api_server(self, **_: object) -> None:
            """Start no dashboard and give an address to those who wait for one."""
            address = ray_constants.DASHBOARD_ADDRESS.encode()
            self.get_gcs_client().internal_kv_put(address, _NOWHERE, True, ray_constants.KV_NAMESPACE_DASHBOARD)  # noqa: FBT003

    Head(
        RayParams(
            gcs_server_port=options.gcs_port,
            metrics_export_port=options.metrics_port,
            dashboard_agent_listen_port=options.agent_port,
            num_cpus=options.cores,
            object_store_memory=options.object_store_bytes,
            temp_dir=options.folder,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
        ),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the node, then become a few megabytes of Python that wait until one of its processes ends."""
    tie_to_launcher()
    (options,) = sys.argv[1:] if arguments is None else arguments
    start(HeadOptions(**json.loads(options)))
    # Process, children and parent-death signal outlive exec; a hundred megabytes of imported Ray do not.
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", WAIT])  # noqa: S606 - our own Python, no shell


if __name__ == "__main__":
    main()
