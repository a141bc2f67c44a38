"""TCP ports on this machine: which are free, and who listens on which."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from dataclasses import dataclass, fields
from typing import Final

from models.errors import SettingsError

LOOPBACK = "127.0.0.1"
UNCLAIMED: Final = range(15_000, 30_000)
"""Where free ports are looked for."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one service apart from its HTTP API, all on loopback.

    The defaults are Ray's own and fit a pod, which runs one service; ``choose_ports`` gives others.
    """

    gcs: int = 6379
    """Ray's global control store."""
    node_metrics: int = 8080
    """Prometheus exposition of the whole node, answered by Ray's agent."""
    agent: int = 52365
    """HTTP API of Ray's agent."""
    haproxy_metrics: int = 9101
    """Prometheus exposition of HAProxy."""
    haproxy_stats: int = 8404
    """HAProxy's statistics page."""
    fallback: int = 8500
    """Ray Serve's Python proxy, which HAProxy uses while no replica is routable."""
    replicas: int = 30000
    """First port of the replicas' own HTTP servers; they take the next free ones from here."""


def choose_ports() -> Ports:
    """Return ports that are free now and differ from each other."""
    return Ports(**dict(zip((field.name for field in fields(Ports)), free_ports(len(fields(Ports))), strict=True)))


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that nothing listens on at loopback now. Raises SettingsError without so many.

    None is one that the system gives to connections (from 32768 on Linux, IANA's from 49152): between now and the
    moment when a server listens there, any program's connection could take it.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(UNCLAIMED, len(UNCLAIMED)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind((LOOPBACK, port))
                found.append(port)
        if len(found) < count:
            msg = f"there are no {count} free ports from {UNCLAIMED.start} to {UNCLAIMED.stop}: end what holds them"
            raise SettingsError(msg)
        return found


def check_address(host: str, port: int) -> None:
    """Refuse an address that no server can be bound to now. Raises SettingsError with one clear line."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = f"port {port} on {host} is in use: stop what listens there, or set STEELYARD_PORT to another port"
        elif error.errno == errno.EACCES:
            msg = f"port {port} may not be opened by this user: set STEELYARD_PORT to one from 1024 up"
        else:
            msg = f"{host} is no address of this machine: set STEELYARD_HOST to one, such as 127.0.0.1"
        raise SettingsError(msg) from None
