"""Run as a program on a host: one of Ray's nodes, until the standard input ends or one of Ray's own processes does.

``python node_program.py HEAD ADDRESS NAME``: the GCS's address, this host's own, and the node's resource. As in a
container, nothing of the node outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import sys

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray_nodes import MEMORY

_PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.5


def main() -> None:
    """Start the node, say so, wait."""
    # Workers whose raylet has died become children of this process (prctl(2)), not of the machine's first one.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    head, address, name = sys.argv[1:]
    parameters = RayParams(
        gcs_address=head,
        node_ip_address=address,
        num_cpus=1,
        resources={name: 9},
        object_store_memory=MEMORY,
        include_log_monitor=False,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    print("ready", flush=True)  # noqa: T201 - this program's answer
    while not select.select([sys.stdin], [], [], LOOK_S)[0] and not node.dead_processes():
        pass
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    main()
