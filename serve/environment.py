"""What Ray and its HAProxy need in their environment, written once for ``steelyard serve`` and for a cluster.

Ray reads all of it when its processes start and when ``ray.serve`` is imported, so it must stand before either. On a
cluster, ``python -m serve.cluster --print-env`` prints the same variables for every pod.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models.errors import SettingsError
from serve.settings import to_environment

if TYPE_CHECKING:
    from serve.ports import Ports
    from serve.settings import Settings

DRAIN_S: Final = 0.5
"""Time a stopping replica stays reachable, so that HAProxy takes it out first (seconds)."""

BACKSTOP_S: Final = 10.0
"""Time after a request's own deadline at which Ray and HAProxy give up on it (seconds)."""

IDLE_CLIENT_S: Final = 60
"""Time a client may stay silent while the service waits for it (seconds)."""

IDLE: Final = {
    # Steps of Serve's controller, whose cost is in proportion: four a second take it a hundredth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    # Counts kept in a process are handed on ten times a second otherwise, and leave it every five seconds anyway.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
    # Ray's agent looks at every process of its node, for figures about the node alone.
    "REPORTER_UPDATE_INTERVAL_MS": "15000",
    # Ten times a second, otherwise, it sees whether its own main thread still runs.
    "RAY_DASHBOARD_AGGREGATOR_AGENT_CHECK_MAIN_THREAD_LIVENESS_INTERVAL_SECONDS": "5",
    # Memory rises slowly here: a release is refused past its budget long before a node is full.
    "RAY_memory_monitor_refresh_ms": "1000",
    # Whether the disk is full, ten times a second otherwise.
    "RAY_local_fs_monitor_interval_ms": "5000",
}
"""What Ray does less often than by default, so that a service without requests rests."""

ALONE: Final = {
    # No other node waits to hear of this one's resources and objects.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    # For Ray's dashboard, which does not run here: tasks, and the times of each handler of Ray's own loops.
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
}
"""What a Ray of one node does less often or not at all on top of that."""

QUIET: Final = {
    # Ultralytics would install packages for what it cannot read, and tell its makers of its use.
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What keeps libraries from installing, fetching and reporting, in every process of the service."""


def serve_environment(settings: Settings, folder: Path, ports: Ports) -> dict[str, str]:
    """Return the variables that every node of the service's Ray cluster needs.

    folder: where HAProxy's configuration and sockets live. HAProxy takes paths of sockets up to 97 bytes, of which Ray
    puts 57 behind the folder's, so their names are short. Names and defaults of the variables are those of
    ``ray.serve._private.constants`` (Ray 2.60).
    Raises SettingsError where the launcher is not installed.
    """
    response_s = math.ceil(settings.request_timeout_s + BACKSTOP_S)
    return {
        **to_environment(settings),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(find_launcher()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "l.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "servers"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(max(IDLE_CLIENT_S, response_s)),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(response_s),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(response_s),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.replicas),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(min(ports.replicas + 1000, 65535)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        # Ray lets its workers give way to everything else, at 15: but here they are what answers, and what may give way
        # to them, loads among it, does so by itself.
        "RAY_worker_niceness": "0",
        **IDLE,
        "RAY_metrics_report_interval_ms": "5000",
        **QUIET,
    }


def ray_environment(settings: Settings, folder: Path, ports: Ports) -> dict[str, str]:
    """Return the variables of a Ray that is this machine's and this service's alone.

    Beyond ``serve_environment``: a token that every process of the cluster must show, in the file that
    ``token_path`` names, and loopback as the node's own address. Ray takes the machine's outer address instead unless
    it is told that clusters of several machines are off, which its variable does under the name of two systems.
    """
    return {
        **serve_environment(settings, folder / "p", ports),
        **ALONE,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(folder)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }


def token_path(folder: Path) -> Path:
    """Return the file in which the cluster's token lies."""
    return folder / "token"


def find_launcher() -> Path:
    """Return the path of the ``steelyard-haproxy`` command beside this Python. Raises SettingsError without it."""
    beside = Path(sys.executable).with_name("steelyard-haproxy")
    if beside.is_file():
        return beside
    found = shutil.which("steelyard-haproxy")
    if found is None:
        msg = "the command steelyard-haproxy is missing beside this Python: install Steelyard again with pip"
        raise SettingsError(msg)
    return Path(found)
