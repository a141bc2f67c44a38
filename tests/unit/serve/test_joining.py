"""How a replica starts, where its actor refuses, is lost or moves on; whole rollouts are in test_reconciler.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from member_world import Place

from models.errors import (
    LedgerError,
    RegistryError,
    ReleaseFaultError,
    ReleaseRejectedError,
    SteelyardError,
    UnavailableError,
    UnknownModelError,
)
from models.rollout.messages import Failure, Refused
from serve.fake_time import run

if TYPE_CHECKING:
    from pathlib import Path


def test_it_starts_held_and_answers_only_once_it_is_admitted(tmp_path: Path) -> None:
    """No batch can start before the admission, whatever the web server does meanwhile."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.verdicts = ["retry", "retry"]
        await place.member.start()
        assert place.engine.calls == ["hold", "prepare 1", "flip 4", "resume"]
        assert place.actor.asked == [(4, None)] * 3
        assert place.cache.get(place.actor.attempt.target.digest) is not None

    run(story())


def test_a_stale_admission_loads_what_is_committed_now(tmp_path: Path) -> None:
    """The fleet moved on while it loaded: it loads again."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.verdicts = ["stale"]
        await place.member.start()
        assert [call for call in place.engine.calls if call.startswith("flip")] == ["flip 4", "flip 4"]

    run(story())


def test_an_unreachable_actor_ends_the_start_with_a_clear_error(tmp_path: Path) -> None:
    """After the deadline the replica gives up, so that Serve can try elsewhere."""

    async def story() -> None:
        place = Place(tmp_path, prepare_timeout_s=5.0)
        place.actor.lost = True
        with pytest.raises(ReleaseFaultError, match="cannot be reached"):
            await place.member.start()

    run(story())


def test_a_refusal_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    """The replica raises what the fleet knows already."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.answer = Refused(Failure("golden", "it is blind", permanent=True))
        with pytest.raises(ReleaseRejectedError, match="it is blind") as caught:
            await place.member.start()
        assert caught.value.step == "golden"

    run(story())


@pytest.mark.parametrize("error", [UnknownModelError("no model named m"), ReleaseRejectedError("odd", step="verify")])
def test_an_answer_that_asking_again_cannot_change_ends_the_start_at_once(
    tmp_path: Path, error: SteelyardError
) -> None:
    """The actor was reached and said no: no two minutes of asking again."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.raises = [error]
        with pytest.raises(type(error), match=str(error)):
            await place.member.start()

    run(story())


def test_an_actor_that_says_try_again_is_asked_again(tmp_path: Path) -> None:
    """Its ledger or its registry may come back."""

    async def story() -> None:
        place = Place(tmp_path)
        place.actor.raises = [UnavailableError("starting"), LedgerError("silent"), RegistryError("down")]
        await place.member.start()
        assert place.actor.raises == []

    run(story())
