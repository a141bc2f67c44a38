"""The member's loop where the actor is lost; whole rollouts are in test_reconciler.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from member_world import Place

from serve.fake_time import run

if TYPE_CHECKING:
    from pathlib import Path


def test_losing_the_actor_is_not_an_illness(tmp_path: Path) -> None:
    """It serves on, healthy and ready, and polls again when the actor is back."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.member.start()
        loop = asyncio.create_task(place.member.run())
        place.actor.lost = True
        await asyncio.sleep(100.0)
        assert (place.member.healthy(), place.member.ready()) == (None, None)
        place.actor.lost = False
        before = len(place.actor.reports)
        await asyncio.sleep(10.0)
        assert len(place.actor.reports) > before
        loop.cancel()

    run(story())


def test_stopping_without_an_actor_takes_no_longer_than_its_deadline(tmp_path: Path) -> None:
    """The farewell is a courtesy; a dead actor cannot hold up the shutdown."""

    async def story() -> None:
        place = Place(tmp_path)
        await place.member.start()
        place.actor.lost = True
        async with asyncio.timeout(5.0):
            await place.member.stop()
        assert place.engine.failing is not None

    run(story())
