"""Clients that leave in the middle of whatever they began: nothing hangs, nothing leaks, nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import socket
import struct
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

pytestmark = pytest.mark.long

REQUESTS = 1000
LEAVING = 3
"""One of so many leaves."""
AT_ONCE = 24
ANSWER_S = 40.0
"""Longer than the service gives a request: a future that hung would show here."""
REST_S = 60.0
"""Time in which the metrics must show a service at rest: they are some seconds old when they are read."""
MEMORY_MB = 150
"""Growth beyond this, between the rest before and the rest after, is a leak and not the allocator's leftovers."""
AT_REST = (
    "ray_steelyard_http_requests_in_flight",
    "ray_steelyard_queued_images",
    "ray_steelyard_batches_running",
    "ray_steelyard_leases",
)
STAGES = ("headers", "body", "queued", "inferring", "answer")
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a reset (RST) instead of an orderly end (FIN)."""


class Client:
    """Posts whole requests, each over a connection of its own, or leaves at a stage of one."""

    def __init__(self, url: str, picture: bytes) -> None:
        """Aim at ``url``; ``picture`` is a JPEG."""
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        head = f"POST /v1/detect HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
        self._head = f"{head}Content-Length: {len(picture)}\r\n\r\n".encode()
        self._picture = picture
        self._random = random.Random(5)  # noqa: S311 - when clients leave is no secret
        self.statuses: Counter[int] = Counter()
        self.left: Counter[str] = Counter()

    async def stay(self) -> None:
        """Send a request and read its answer."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._head + self._picture)
            answer = await asyncio.wait_for(reader.read(-1), ANSWER_S)
        finally:
            writer.transport.abort()
        self.statuses[int(answer.split(b" ", 2)[1])] += 1

    async def leave(self, stage: str) -> None:
        """Leave at ``stage``, every second time with a reset."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            whole = self._head + self._picture
            sent = {"headers": len(self._head) // 2, "body": len(self._head) + len(self._picture) // 2}
            writer.write(whole[: sent.get(stage, len(whole))])
            if stage == "answer":
                await asyncio.wait_for(reader.read(1), ANSWER_S)
            else:
                # Under AT_ONCE clients an image waits for most of its time, and is in work for the last of it.
                longest = {"queued": 0.2, "inferring": 1.5}.get(stage, 0.02)
                await asyncio.sleep(self._random.uniform(0.0, longest))
            if self._random.random() < 0.5:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            writer.transport.abort()
        self.left[stage] += 1

    async def run(self, numbers: Iterator[int], stages: Iterator[str]) -> None:
        """Take numbers until there are none; of every LEAVING one leaves."""
        for number in numbers:
            if number % LEAVING == 0:
                await self.leave(next(stages))
            else:
                await self.stay()


async def storm(client: Client, requests: int) -> None:
    """Send ``requests``, AT_ONCE at a time."""
    numbers, stages = iter(range(requests)), itertools.cycle(STAGES)
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client.run(numbers, stages))


def samples(service: Service) -> list[Any]:
    """Return every sample of ``/metrics``."""
    answer = httpx.get(f"{service.url}/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def total(found: list[Any], name: str, **labels: str) -> float:
    """Return the sum of a counter over all replicas."""
    return sum(s.value for s in found if s.name == name and labels.items() <= s.labels.items())


def open_requests(service: Service) -> int:
    """Return how many connections HAProxy has with clients."""
    port = int(service.url.rpartition(":")[2])
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
        for connection in psutil.net_connections("tcp")
    )


def test_clients_that_leave_midway_leave_nothing_behind(service: Service) -> None:
    """1000 requests, a third of which end at five stages: the others are answered, then all is as it was before."""
    client = Client(service.url, service.tray)
    asyncio.run(storm(client, 4 * AT_ONCE))  # what the first load leaves in memory is no leak
    before = samples(service)
    pids = sorted(process.pid for process in service.replicas())
    memory = {process.pid: process.memory_info().rss for process in service.replicas()}
    files = {process.pid: process.num_fds() for process in service.replicas()}
    client = Client(service.url, service.tray)

    asyncio.run(storm(client, REQUESTS))

    staying = REQUESTS - len(range(0, REQUESTS, LEAVING))
    assert client.statuses.total() == staying
    assert set(client.statuses) <= {200, 429}, client.statuses
    assert client.statuses[200] > staying // 2, client.statuses
    assert set(client.left) == set(STAGES)
    assert client.left.total() == REQUESTS - staying
    assert service.detect()["images"][0]["results"]

    deadline = time.monotonic() + REST_S
    noticed = "ray_steelyard_images_total"
    while True:
        now = samples(service)
        held = {(s.name, s.labels.get("replica")): s.value for s in now if s.name in AT_REST}
        left = total(now, noticed, outcome="cancelled") - total(before, noticed, outcome="cancelled")
        answered = total(now, noticed, outcome="ok") - total(before, noticed, outcome="ok")
        if answered >= client.statuses[200] and left and not any(held.values()):
            break
        assert time.monotonic() < deadline, f"not at rest: {held}, {answered} answered, {left} cancelled"
        time.sleep(0.7)  # the service under test lives in real time
    assert {name for name, _ in held} == set(AT_REST)
    assert len({replica for _, replica in held}) >= len(pids)
    assert answered < REQUESTS, "an image whose client had left was answered all the same, each time"
    assert open_requests(service) <= 1
    after = service.replicas()
    assert sorted(process.pid for process in after) == pids, "a replica was replaced"
    for process in after:
        assert process.memory_info().rss < memory[process.pid] + MEMORY_MB * 2**20
        assert process.num_fds() <= files[process.pid] + 5
    restarts = re.findall(r"Traceback|never retrieved|was destroyed but it is pending", service.log.read_text("utf-8"))
    assert not restarts
    for _ in range(4):
        assert service.detect()["images"][0]["results"]
