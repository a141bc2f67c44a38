"""Finding the right rollout actor, and a new one when the old is gone for good."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from models.errors import UnavailableError
from serve.fake_time import run
from serve.rollout_client import DEAD_S, RolloutClient, matching


class FakeActor:
    """One actor behind its handle."""

    def __init__(self, mark: str) -> None:
        """Begin alive."""
        self.mark, self.dead = mark, False
        self.hint = self

    async def remote(self, *_: object) -> str:
        """Answer any method with the mark, or as a dead actor does."""
        if self.dead:
            raise ActorDiedError
        return self.mark


class FakeCluster:
    """Gives the actor of the name, made with ``mark`` where there is none. ended: marks, in order."""

    def __init__(self, *actors: FakeActor) -> None:
        """Begin with the last of these under the name."""
        self.named = list(actors)
        self.made = 0
        self.ended: list[str] = []
        self.busy = 0

    def get(self, mark: str) -> Any:
        """Return the function that gets or creates."""

        async def get() -> FakeActor:
            await asyncio.sleep(0.1)
            if not self.named or self.named[-1].dead:
                self.made += 1
                self.named.append(FakeActor(mark))
            return self.named[-1]

        return get

    async def ask(self, actor: FakeActor) -> str | None:
        """Return the fingerprint."""
        await asyncio.sleep(0.1)
        if self.busy:
            self.busy -= 1
            raise ActorUnavailableError(str(self.busy), None)
        return None if actor.dead else actor.mark

    async def end(self, actor: FakeActor) -> None:
        """End this very actor."""
        await asyncio.sleep(0.1)
        self.ended.append(actor.mark)
        actor.dead = True


def test_an_actor_with_the_same_settings_is_kept() -> None:
    """Also while it restarts: it is only waited for."""
    old = FakeActor("same")
    cluster = FakeCluster(old)
    cluster.busy = 3
    assert run(matching(cluster.get("same"), "same", ask=cluster.ask, end=cluster.end)) is old
    assert cluster.ended == []


def test_several_replicas_with_new_settings_end_the_old_actor_and_share_one_new() -> None:
    """However their steps fall, none ends the successor that another has made."""

    async def story() -> None:
        old = FakeActor("old")
        cluster = FakeCluster(old)

        async def one(delay: float) -> Any:
            await asyncio.sleep(delay)
            return await matching(cluster.get("new"), "new", ask=cluster.ask, end=cluster.end)

        found = await asyncio.gather(*(one(0.07 * number) for number in range(8)))
        assert {actor.mark for actor in found} == {"new"}
        assert len(set(map(id, found))) == cluster.made == 1
        assert set(cluster.ended) == {"old"}

    run(story())


def test_a_client_finds_the_successor_of_an_actor_that_is_gone_for_good() -> None:
    """A replica that outlives a redeployment follows rollouts again; a moment's death is only a restart."""

    async def story() -> None:
        old, new = FakeActor("old"), FakeActor("new")
        asked: list[FakeActor] = []

        async def renew(dead: FakeActor) -> FakeActor:
            asked.append(dead)
            return new

        client = RolloutClient(old, renew, clock=asyncio.get_running_loop().time)
        await client.hint("m")
        for dead_for in (DEAD_S - 1.0, DEAD_S + 1.0):
            old.dead = True
            for _ in range(2):
                with pytest.raises(UnavailableError):
                    await client.hint("m")
                await asyncio.sleep(dead_for)
            if dead_for < DEAD_S:
                assert asked == []
                old.dead = False
                await client.hint("m")
        await client.hint("m")
        assert asked == [old]

    run(story())


def test_a_successor_that_is_not_found_is_looked_for_again() -> None:
    """The cluster may be busy."""

    async def story() -> None:
        old, new = FakeActor("old"), FakeActor("new")
        old.dead = True
        tries: list[int] = []

        async def renew(_: FakeActor) -> FakeActor:
            tries.append(1)
            if len(tries) == 1:
                raise UnavailableError(str(tries))
            return new

        client = RolloutClient(old, renew, clock=asyncio.get_running_loop().time)
        for _ in range(4):
            with pytest.raises(UnavailableError):
                await client.hint("m")
            await asyncio.sleep(DEAD_S)
            if len(tries) == 2:
                break
        await client.hint("m")
        assert len(tries) == 2

    run(story())
