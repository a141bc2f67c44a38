"""The member's loop where the actor is lost; whole rollouts are in test_reconciler.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from member_world import Place

from models.rollout import member
from models.rollout.messages import Attempt, Join
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


def test_in_strict_mode_it_refuses_once_the_ledger_is_silent_and_not_for_a_lost_actor(tmp_path: Path) -> None:
    """503 and not ready until the ledger speaks; the actor's silence is no reason, nor is its word a proof."""

    async def story() -> None:
        place = Place(tmp_path, strict_isolation_s=10.0)
        place.ledger.data["m/member/r"] = "1"
        await place.member.start()
        loop = asyncio.create_task(place.member.run())
        place.actor.lost = True
        await asyncio.sleep(100.0)
        assert (place.member.healthy(), place.member.ready(), place.engine.failing) == (None, None, None)
        place.actor.lost, place.ledger.reachable = False, False
        await asyncio.sleep(6.0)
        assert place.engine.answering
        await asyncio.sleep(4.5)
        assert (place.member.ready(), place.engine.failing) == (member.CUT_OFF, member.CUT_OFF)
        assert place.member.healthy() is None
        await asyncio.sleep(60.0)
        assert not place.engine.answering
        place.ledger.reachable = True
        await asyncio.sleep(0.5)
        assert (place.member.ready(), place.engine.answering) == (None, True)
        assert place.engine.calls.count("hold") == 1
        loop.cancel()

    run(story())


def test_in_strict_mode_one_that_is_struck_off_joins_again_before_it_answers(tmp_path: Path) -> None:
    """The ledger tells it sooner than the actor: it holds, takes what is committed now, and is admitted."""

    async def story() -> None:
        place = Place(tmp_path, strict_isolation_s=10.0)
        place.ledger.data["m/member/r"] = "1"
        await place.member.start()
        loop = asyncio.create_task(place.member.run())
        await asyncio.sleep(5.0)
        place.actor.answer = Join(Attempt(9, 1, place.actor.attempt.target), 1, decided=True)
        place.actor.verdicts = ["retry"] * 60
        del place.ledger.data["m/member/r"]
        await asyncio.sleep(4.0)
        assert (place.engine.held, place.member.ready()) == (True, "m joins the fleet again")
        place.ledger.data["m/member/r"] = "1"
        await asyncio.sleep(5.0)
        assert (place.engine.answering, place.engine.active) == (True, (place.actor.attempt.target.digest, 9))
        assert place.engine.failing is None
        loop.cancel()

    run(story())
