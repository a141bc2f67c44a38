"""Limits of keys over a real service of two replicas: rate, concurrency, other keys, and the actor killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import httpx
import pytest
from running import start, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

pytestmark = pytest.mark.long

WORK_S = 0.2
"""Time that the fake detector takes for an image."""


@dataclass(frozen=True)
class Answer:
    """One request: monotonic seconds at which it was sent and answered, its status, its code and its advice."""

    sent: float
    answered: float
    status: int
    code: str
    retry_after: str | None


@dataclass(frozen=True)
class Limited:
    """A service with keys. Texts of the keys by name."""

    service: Service
    keys: dict[str, str]

    def metric(self, name: str) -> list[tuple[str, float]]:
        """Return the series of a metric: labels as they are written, and the value."""
        answer = httpx.get(f"{self.service.url}/metrics", headers=self.headers("reader"), timeout=30)
        assert answer.status_code == 200, answer.text
        lines = [line for line in answer.text.splitlines() if line.startswith(f"ray_{name}{{")]
        return [(line.split("{")[1].split("}")[0], float(line.rsplit(" ", 1)[1])) for line in lines]

    def headers(self, name: str) -> dict[str, str]:
        """Return the headers of a JPEG sent with the key."""
        return {"Authorization": f"Bearer {self.keys[name]}", "Content-Type": "image/jpeg"}

    async def post(self, client: httpx.AsyncClient, name: str) -> Answer:
        """Send one image with the key of that name."""
        sent = time.monotonic()
        found = await client.post(
            f"{self.service.url}/v1/detect", content=self.service.tray, headers=self.headers(name), timeout=20
        )
        code = "" if found.status_code == 200 else found.json()["code"]
        return Answer(sent, time.monotonic(), found.status_code, code, found.headers.get("retry-after"))

    async def flood(self, name: str, per_s: float, seconds: float) -> list[Answer]:
        """Send images evenly spaced, however late the answers are."""
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx.AsyncClient(limits=limits) as client:
            begun = time.monotonic()
            sent: list[asyncio.Task[Answer]] = []
            for number in range(int(per_s * seconds)):
                await asyncio.sleep(max(0.0, begun + number / per_s - time.monotonic()))
                sent.append(asyncio.create_task(self.post(client, name)))
            return list(await asyncio.gather(*sent))

    async def queue(self, name: str, seconds: float) -> list[Answer]:
        """Send one image after the other."""
        until = time.monotonic() + seconds
        found: list[Answer] = []
        async with httpx.AsyncClient() as client:
            while time.monotonic() < until:
                found.append(await self.post(client, name))
        return found


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    """Return a service of two replicas whose fake detector takes WORK_S, and keys with limits."""
    folder = tmp_path_factory.mktemp("limited")
    service = start(
        folder / "home",
        folder / "serve.log",
        "--replicas",
        "2",
        STEELYARD_BACKEND="fake",
        STEELYARD_FAKE_SERVICE_S=str(WORK_S),
        STEELYARD_LANES="8",
    )
    try:
        options = {
            "rated": ("--scope", "predict", "--rate", "20"),
            "paired": ("--scope", "predict", "--concurrency", "2"),
            "free": ("--scope", "predict"),
            "reader": ("--scope", "metrics"),
        }
        keys: dict[str, str] = {}
        for name, given in options.items():
            made = service.cli("access", "add", name, *given, "--json")
            assert made.returncode == 0, made.stderr
            keys[name] = json.loads(made.stdout)["key"]
        time.sleep(3.0)  # both replicas read the keys within two seconds, and every bucket is full
        yield Limited(service, keys)
    finally:
        stop(service)


def _rest_are_refused(answers: list[Answer]) -> None:
    refused = [each for each in answers if each.status != 200]
    assert {(each.status, each.code) for each in refused} == {(429, "quota_exceeded")}
    assert all(each.retry_after is not None and int(each.retry_after) >= 1 for each in refused)


def _most_at_once(answers: list[Answer], slack_s: float) -> int:
    """Return how many were certainly worked on at one moment; answers may travel for ``slack_s``."""
    work = [(each.answered - WORK_S + slack_s, each.answered - slack_s) for each in answers if each.status == 200]
    return max(sum(begin <= moment < end for begin, end in work) for moment, _ in work)


def test_a_rate_holds_over_both_replicas(limited: Limited) -> None:
    """Of 100 a second for 10 s 20 a second are answered, by both replicas together, and the rest is told when."""
    asyncio.run(limited.flood("rated", 100.0, 1.5))  # the bucket is empty from here on
    answers = asyncio.run(limited.flood("rated", 100.0, 10.0))
    passed = sum(each.status == 200 for each in answers)
    assert 180 <= passed <= 220, passed
    _rest_are_refused(answers)
    time.sleep(3.0)  # metrics are told once a second
    admitted = {labels for labels, value in limited.metric("steelyard_quota_requests_total") if "admitted" in labels}
    assert len(admitted) == 2, "both replicas let requests in"


def test_no_more_are_in_flight_than_the_limit_over_both_replicas(limited: Limited) -> None:
    """However many are sent, at most two at once are worked on, and these two places are used."""
    answers = asyncio.run(limited.flood("paired", 30.0, 8.0))
    assert _most_at_once(answers, 0.04) <= 2
    passed = sum(each.status == 200 for each in answers)
    assert 0.6 * 2 * 8.0 / WORK_S <= passed <= 2 * (8.0 + 0.5) / WORK_S, passed
    _rest_are_refused(answers)


def test_one_request_after_the_other_is_never_refused(limited: Limited) -> None:
    """The places move to whichever replica is asked."""
    assert {each.status for each in asyncio.run(limited.queue("paired", 4.0))} == {200}


def test_another_key_does_not_notice(limited: Limited) -> None:
    """Its median beside a key that is refused most of its requests is that of quiet times."""

    async def beside() -> list[Answer]:
        flood = asyncio.create_task(limited.flood("rated", 60.0, 6.0))
        found = await limited.queue("free", 5.0)
        await flood
        return found

    alone = asyncio.run(limited.queue("free", 5.0))
    crowded = asyncio.run(beside())
    assert {each.status for each in (*alone, *crowded)} == {200}
    quiet, busy = (median(each.answered - each.sent for each in found) for found in (alone, crowded))
    assert busy <= 1.5 * quiet, f"{1e3 * quiet:.0f} ms alone, {1e3 * busy:.0f} ms beside the flood"


def test_serving_goes_on_when_the_actor_is_killed(limited: Limited) -> None:
    """Each replica lets half of the rate in meanwhile, nothing fails, and the restart doubles nothing."""

    async def story() -> tuple[list[Answer], float]:
        flood = asyncio.create_task(limited.flood("rated", 100.0, 15.0))
        await asyncio.sleep(4.0)
        actor = limited.service.actor_pid()
        assert actor is not None
        os.kill(actor, signal.SIGKILL)
        killed = time.monotonic()
        return await flood, killed

    asyncio.run(limited.flood("rated", 100.0, 1.5))
    answers, killed = asyncio.run(story())
    _rest_are_refused(answers)
    begun, ended = answers[0].sent, answers[-1].sent
    passed = [each.answered - WORK_S for each in answers if each.status == 200]

    def per_s(first: float, last: float) -> float:
        return sum(first <= moment < last for moment in passed) / (last - first)

    story_told = [round(per_s(begun + second, begun + second + 1)) for second in range(int(ended - begun))]
    assert per_s(killed, killed + 4.0) >= 10.0, story_told
    assert per_s(ended - 4.0, ended) >= 14.0, story_told
    # At the moment of the loss each of the two has at most its half of a bucket beside what it held.
    assert len(passed) <= 1.1 * 20.0 * (ended - begun) + 20.0, story_told
