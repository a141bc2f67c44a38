"""The service whose weights change: its releases, its known outputs, what its replicas log, what they occupy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import releases
from swap_answers import Boxes, Known, same

from models import demo
from models.weights.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from servers import Server
    from swap_registry import Hand

SWAP_DEADLINE_S = 60.0
LOOK_S = 0.05
"""Between two looks at the logs, which take processor time from the service in swap windows only."""
LEAK_POINT = "replica.after_load"
EVENTS = ("prepared", "flipped", "held")
"""What a replica logs of a swap (``serve/telemetry.py``): loaded, serving from now on, batches start again."""


class SwapError(Exception):
    """The service did not do what it was asked; the message says what it said instead."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a replica. at: wall clock, seconds. ms: how long it took, where it took time."""

    replica: str
    at: float
    kind: str
    ms: float = 0.0
    generation: int = 0
    version: str = ""


def make_releases(folder: Path, cache: Path) -> list[Path]:
    """Return four folders: releases of the demo's networks 1, 2, 1 and 2 under four digests.

    Four, because a replica keeps two versions: in this order every promotion has to load and to warm, and every one
    changes what pictures are answered with. The networks are converted once, which takes half a minute each.
    """
    networks = [releases.prepare(demo.weights_path(number), cache=cache) for number in (1, 2)]
    return [*networks, *(again(network, folder / str(number)) for number, network in enumerate(networks))]


def again(release: Path, into: Path) -> Path:
    """Copy a release's folder to one of another digest: its manifest names one metric more."""
    shutil.copytree(release, into)
    manifest = Manifest.from_bytes((into / MANIFEST).read_bytes())
    other = replace(manifest, metrics={**manifest.metrics, "again": 1.0})
    (into / MANIFEST).write_bytes(other.to_bytes())
    return into


def digest_of(release: Path) -> str:
    """Return the digest of the release in a folder, 64 hex digits."""
    return Manifest.from_bytes((release / MANIFEST).read_bytes()).digest


def forget_compiled(home: Path) -> None:
    """Remove the networks that the service with this home has compiled, which its next swap then does again."""
    for path in (home / "cache" / "engines").glob("*.openvino"):
        path.unlink(missing_ok=True)


class Timeline:
    """Reads what the replicas of the service with this home log. ``events``: all so far, by replica in order."""

    def __init__(self, home: Path) -> None:
        """Read nothing yet."""
        self.events: list[Event] = []
        self._home = home
        self._read: dict[Path, int] = {}

    def read(self) -> None:
        """Take up what was written since the last call."""
        for path in sorted((self._home / "logs").glob("*/replica-*.log")):
            begin = self._read.get(path, 0)
            if path.stat().st_size <= begin:
                continue
            with path.open("rb") as log:
                log.seek(begin)
                text = log.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = begin + len(whole)
            self.events += [event for line in whole.splitlines() if (event := event_of(path.stem, line)) is not None]

    def flips(self, generation: int) -> dict[str, float]:
        """Return when each replica flipped to ``generation``, on the wall clock."""
        return {e.replica: e.at for e in self.events if e.kind == "flipped" and e.generation == generation}

    @property
    def version(self) -> str:
        """Return the version that was flipped to last, "" before the first."""
        return next((event.version for event in reversed(self.events) if event.kind == "flipped"), "")

    @property
    def generation(self) -> int:
        """Return the newest generation that any replica has flipped to."""
        return max((event.generation for event in self.events), default=0)


def event_of(replica: str, line: bytes) -> Event | None:
    """Return the event of one log line, None for a line about anything else."""
    if not any(b'"%s"' % kind.encode() in line for kind in EVENTS):
        return None
    try:
        entry = json.loads(line)
        if entry["logger"] != "serve.telemetry" or entry["message"] not in EVENTS:
            return None
        return Event(
            replica,
            datetime.fromisoformat(entry["ts"]).timestamp(),
            entry["message"],
            float(entry.get("ms", 0.0)),
            int(entry.get("generation", 0)),
            str(entry.get("version", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None


class Fleet:
    """Asks a running service to change its weights, and sees when every replica has."""

    def __init__(self, server: Server, home: Path, replicas: int, client: httpx.AsyncClient) -> None:
        """Ask nothing yet. client: has the service's URL as its base."""
        self.timeline = Timeline(home)
        self._server, self._replicas, self._client = server, replicas, client
        self._processes: list[psutil.Process] = []

    async def promote(self, version: str) -> int:
        """Promote ``version``; return its generation once every replica serves it. Raises SwapError."""
        return await self._change("promote", {"version": version})

    async def roll_back(self) -> int:
        """Return to the version before; return its generation once every replica serves it. Raises SwapError."""
        return await self._change("rollback", None)

    async def follow(self, hand: Hand, version: str) -> int:
        """Tell of an alias that ``hand`` has moved to ``version``; return its generation as above. Raises SwapError."""
        return await self._reach(f"the alias moved to {version}", hand.tell(self._client, version))

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point in every replica. Raises SwapError."""
        answer = await self._client.post("/v1/faults", json={"point": point, "action": action})
        if not answer.is_success:
            msg = f"{action} cannot be armed at {point}: {answer.text[:300]}"
            raise SwapError(msg)

    async def learn(self, version: str, digest: str, pictures: Sequence[bytes]) -> Known:
        """Return what ``version``, promoted if need be, answers while nobody else asks; digest: as registered.

        Raises SwapError where another version answers.
        """
        self.timeline.read()
        if self.timeline.version != version:
            await self.promote(version)
        results: list[Boxes] = []
        for picture in pictures:
            answer = await self._detect(picture)
            origin = answer["metadata"]
            if (origin["version"], origin["digest"]) != (version, digest):
                msg = f"version {version} with digest {digest[:12]} should answer, and {origin} does"
                raise SwapError(msg)
            results.append(answer["images"][0]["results"])
        return Known(digest, tuple(results))

    def memory(self) -> dict[str, tuple[int, int]]:
        """Return resident and proportional set of each replica in bytes; blocks for some ten milliseconds."""
        if not self._processes:
            replicas = {event.replica for event in self.timeline.events}
            self._processes = [one for one in self._server.processes() if f"replica-{one.pid}" in replicas]
        found = {}
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                full = process.memory_full_info()
                found[f"replica-{process.pid}"] = (full.rss, full.pss)
        return found

    async def _detect(self, picture: bytes) -> dict[str, Any]:
        answer = await self._client.post(self._server.path, content=picture, headers={"Content-Type": "image/jpeg"})
        if not answer.is_success:
            msg = f"a picture was refused before any load: {answer.text[:300]}"
            raise SwapError(msg)
        document: dict[str, Any] = answer.json()
        return document

    async def _change(self, action: str, body: dict[str, str] | None) -> int:
        route = f"/v1/models/{releases.MODEL}/{action}"
        request = self._client.post(route, json=body) if body else self._client.post(route)
        return await self._reach(f"{action} {body or ''}", request)

    async def _reach(self, what: str, request: Coroutine[Any, Any, httpx.Response]) -> int:
        self.timeline.read()
        before = self.timeline.generation
        asking = asyncio.ensure_future(request)
        try:
            async with asyncio.timeout(SWAP_DEADLINE_S):
                while True:
                    self.timeline.read()
                    now = self.timeline.generation
                    if now > before and len(self.timeline.flips(now)) == self._replicas:
                        (await asking).raise_for_status()
                        return now
                    if asking.done() and not asking.result().is_success:
                        break
                    await asyncio.sleep(LOOK_S)
        except (TimeoutError, httpx.HTTPError) as error:
            state = await self._client.get(f"/v1/models/{releases.MODEL}/rollout")
            msg = f"{what} did not reach every replica ({type(error).__name__}): {state.text[:600]}"
            raise SwapError(msg) from error
        finally:
            asking.cancel()
        msg = f"{what} was refused: {asking.result().text[:300]}"
        raise SwapError(msg)


def next_version(versions: Sequence[str], serving: str, previous: str, differ: Callable[[str, str], bool]) -> str:
    """Return the version to promote: after ``serving`` in turn, not resident, and with other answers than its."""
    start = versions.index(serving)
    turn = [versions[(start + step) % len(versions)] for step in range(1, len(versions))]
    return next(version for version in turn if version != previous and differ(version, serving))


def told_apart(first: Known, second: Known, *, exact: bool) -> bool:
    """Return whether every picture is answered differently by the two."""
    return all(not same(mine, its, exact=exact) for mine, its in zip(first.results, second.results, strict=True))
