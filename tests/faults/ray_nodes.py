"""Several of Ray's nodes on this machine, each with a resource of its own name, so that a test says what runs where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import ray
from ray._private import ray_constants
from ray.cluster_utils import Cluster

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK: Final = "127.0.0.1"
MEMORY: Final = 100 * 2**20
"""Bytes of a node's object store."""


class Nodes:
    """A head, whose resource is ``head``, and what is added to it. address: at which all of them listen."""

    def __init__(self, folder: Path, address: str = LOOPBACK) -> None:
        """Start the head and connect to it."""
        # Ray notes the last cluster's address there, for programs that want any; nobody is to find this one.
        (folder / "ray").mkdir(parents=True)
        self._environment = pytest.MonkeyPatch()
        self._environment.setenv("RAY_TMPDIR", str(folder))
        if address == LOOPBACK:
            # Under the name of two systems: the nodes' own address is loopback.
            self._environment.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
            self._environment.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        self._node = {"num_cpus": 1, "node_ip_address": address, "object_store_memory": MEMORY}
        head = {"include_dashboard": False, "temp_dir": str(folder / "r"), "resources": {"head": 9}}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self._node, **head})
        self._nodes: dict[str, Any] = {}
        ray.init(address=self.cluster.address, log_to_driver=False, _node_ip_address=address)

    def add(self, name: str) -> None:
        """Start one more node."""
        self._nodes[name] = self.cluster.add_node(resources={name: 9}, **self._node)

    def lose(self, name: str) -> None:
        """Kill all processes of a node."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def close(self) -> None:
        """End all of them."""
        ray.shutdown()
        self.cluster.shutdown()
        self._environment.undo()
