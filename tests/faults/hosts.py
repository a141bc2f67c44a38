"""Hosts on one machine: a network namespace each, joined by a switch in a namespace of its own. Linux, as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

NETWORK: Final = "10.213.77"
LONGEST_S: Final = 20.0


class RefusedError(Exception):
    """This machine lets nobody make namespaces; the message says how it put it."""


class Hosts:
    """Namespaces by their hosts' names, the first with the address NETWORK.1. Use as a context manager.

    Raises RefusedError where the block begins.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Make nothing yet."""
        self._prefix = f"steel{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}

    def __enter__(self) -> Self:
        """Make the hosts and join them."""
        try:
            self._make(self._switch)
            # Loopback first shows what a container without rights refuses.
            _ip("-n", self._switch, "link", "add", "wires", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "wires", "up")
            for name, address in self.addresses.items():
                self._join(name, address)
        except subprocess.CalledProcessError as error:
            self._remove()
            msg = f"network namespaces cannot be made here: {error.stderr.strip()}"
            raise RefusedError(msg) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what runs on the hosts, and the hosts."""
        self._remove()

    def on(self, name: str, *command: str) -> list[str]:
        """Return the command line that runs ``command`` on a host."""
        return ["ip", "netns", "exec", self._namespace(name), *command]

    def pull(self, name: str) -> list[str]:
        """Return the command line that pulls a host's cable out of the switch."""
        return ["ip", "-n", self._switch, "link", "set", f"to-{name}", "down"]

    def plug(self, name: str) -> list[str]:
        """Return the command line that puts it back."""
        return ["ip", "-n", self._switch, "link", "set", f"to-{name}", "up"]

    def pids(self, name: str) -> list[str]:
        """Return the command line that prints the processes of a host, one id a line."""
        return ["ip", "netns", "pids", self._namespace(name)]

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _make(self, namespace: str) -> None:
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")

    def _join(self, name: str, address: str) -> None:
        namespace = self._namespace(name)
        self._make(namespace)
        _ip(
            "-n", self._switch, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "cable", "netns", namespace
        )
        _ip("-n", self._switch, "link", "set", f"to-{name}", "master", "wires")
        _ip("-n", self._switch, "link", "set", f"to-{name}", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "cable")
        _ip("-n", namespace, "link", "set", "cable", "up")

    def _remove(self) -> None:
        for namespace in [*map(self._namespace, self.addresses), self._switch]:
            deadline = time.monotonic() + LONGEST_S
            while (inside := _inside(namespace)) and time.monotonic() < deadline:
                for process in inside:
                    # Whatever runs in a namespace of ours was started by us.
                    _kill(process)
                time.sleep(0.05)
            _ip("netns", "delete", namespace, check=False)


def _ip(*arguments: str, check: bool = True) -> str:
    program = shutil.which("ip")
    if program is None:
        msg = "the command ip is not installed (Debian: iproute2)"
        raise RefusedError(msg)
    asked = subprocess.run([program, *arguments], check=check, capture_output=True, text=True, timeout=LONGEST_S)
    return asked.stdout if asked.returncode == 0 else ""


def _inside(namespace: str) -> list[int]:
    return [int(line) for line in _ip("netns", "pids", namespace, check=False).split()]


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
