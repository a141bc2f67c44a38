"""How long a poll of a replica stays open: until there is something to do, and no longer than the phase allows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.rollout.messages import Report
from models.rollout.state import State, Timing, View
from serve import polls
from serve.failure_detector import BUSY_TICK_S, TICK_S
from serve.faults import FaultPoints

REPLICA = "detector#one"


class World:
    """An actor in one phase whose clock stands still but while it waits for a change, which never comes."""

    def __init__(self, phase: str, *, probation: float | None = None) -> None:
        """Have one member, which has said nothing yet."""
        self.now = 100.0
        self.state = State("m", phase=phase, probation=probation, members={REPLICA: View(admitted=True)})
        self.polls = polls.Polls(
            now=lambda: self.state,
            feed=lambda _: None,
            change=self._wait,
            faults=FaultPoints(allowed=False),
            clock=lambda: self.now,
            sleep=self._wait,
        )

    async def _wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize(
    ("phase", "probation", "seconds"),
    [
        ("idle", None, polls.IDLE_POLL_S),
        ("idle", 90.0, polls.WATCH_POLL_S),
        ("trial", None, polls.WATCH_POLL_S),
        ("fetch", 90.0, polls.LOAD_POLL_S),
        ("prepare", None, polls.LOAD_POLL_S),
        ("judge", None, polls.BUSY_POLL_S),
        ("hold", None, polls.BUSY_POLL_S),
        ("commit", 90.0, polls.BUSY_POLL_S),
    ],
)
async def test_a_poll_stays_open_as_long_as_the_phase_allows(
    phase: str, probation: float | None, seconds: float
) -> None:
    """The longer, the less the replicas' polls take from the images; the shorter, the sooner a hold is fresh."""
    world = World(phase, probation=probation)
    reply = await world.polls.next(Report(REPLICA, 1, 3, "d"))
    assert reply.directive is None
    assert world.now - 100.0 == pytest.approx(seconds)


async def test_an_open_poll_follows_the_phase() -> None:
    """One that was begun while nothing happened is answered soon once replicas hold."""
    world = World("idle")
    wait = world.polls._change

    async def change(seconds: float) -> None:
        world.state = replace(world.state, phase="hold")
        await wait(min(seconds, 0.01))

    world.polls._change = change
    await world.polls.next(Report(REPLICA, 1, 3, "d"))
    assert world.now - 100.0 == pytest.approx(polls.BUSY_POLL_S, abs=0.02)


def test_polls_are_fresh_enough_to_begin_a_hold() -> None:
    """A hold begins only where no poll is older than ``fresh_s``, so those of a load must come twice as often."""
    assert Timing().fresh_s >= 2 * polls.LOAD_POLL_S


@pytest.mark.parametrize("phase", ["fetch", "prepare", "hold", "commit"])
def test_time_passes_quickly_while_replicas_may_hold(phase: str) -> None:
    """The detector looks at the phase before it sleeps: a hold that begins meanwhile must not wait for its abort."""
    assert phase in polls.BUSY
    assert BUSY_TICK_S < TICK_S
