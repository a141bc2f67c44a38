"""The batcher's laws, in virtual time: whatever happens, nothing is lost, doubled, mixed or left hanging."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from batch_world import NEVER, World, play, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.backends.backend import Plan
from models.errors import (
    BackendError,
    DeadlineExceededError,
    InvalidOptionError,
    OverloadedError,
    SteelyardError,
    UnavailableError,
)

if TYPE_CHECKING:
    from concurrent.futures import Future


class Script:
    """Plays random actions against a world and remembers what they did."""

    def __init__(self, plan: Plan, crash: BaseException | None) -> None:
        """Make the world."""
        self.world = World(plan=plan, error=crash, max_queue=10)
        self.tasks: list[asyncio.Task] = []
        self.cancelled_early: set[int] = set()

    async def submit(self, group: int, deadline: float, kind: str) -> None:
        """Send a job."""
        job = (len(self.tasks), group, kind)
        waiting = self.world.batcher.submit(job, group, self.world.loop.time() + deadline)
        self.tasks.append(asyncio.create_task(waiting))
        await settle()

    async def cancel(self, index: int) -> None:
        """Let a client go away."""
        if index < len(self.tasks):
            if not any(index == job[0] for batch in self.world.batches for job in batch):
                self.cancelled_early |= set() if self.world.batcher.running else {index}
            self.tasks[index].cancel()
            await settle()

    async def switch(self, name: str) -> None:
        """Throw one of the switches."""
        batcher = self.world.batcher
        {
            "hold": batcher.hold,
            "resume": batcher.resume,
            "refuse": lambda: batcher.fail_all("in doubt"),
            "allow": lambda: batcher.fail_all(None),
            "vanish": lambda: setattr(self.world, "serving", False),
            "appear": lambda: setattr(self.world, "serving", True),
        }[name]()

    def check_batches(self) -> None:
        """Demand the laws of batches, lanes, holds and leases."""
        world = self.world
        assert world.batcher.queued == world.batcher.running == world.leases == 0
        assert world.started_while_held == 0
        assert world.most_running <= world.plan.lanes
        assert {lane.number for lane in world.lanes} <= set(range(world.plan.lanes))
        assert world.told_wrongly_alone == 0
        for batch in world.batches:
            assert 1 <= len(batch) <= world.plan.max_batch
            assert len({job[1] for job in batch}) == 1

    def check_tasks(self) -> None:
        """Demand that every task ended rightly and every job ran at most once."""
        ran = Counter(job[0] for batch in self.world.batches for job in batch)
        assert all(times == 1 for times in ran.values())
        assert self.cancelled_early.isdisjoint(index for index in ran if self.tasks[index].cancelled())
        for index, task in enumerate(self.tasks):
            assert task.done()
            if task.cancelled():
                continue
            if (error := task.exception()) is not None:
                assert isinstance(error, SteelyardError)
                continue
            (verdict, job), waited = task.result()
            assert (verdict, job[0], ran[index]) == ("seen", index, 1)
            assert waited >= 0


actions = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 2), st.floats(0.1, 8.0), st.sampled_from(["good", "good", "bad"])),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("sleep"), st.floats(0.0, 3.0)),
    st.tuples(st.just("switch"), st.sampled_from(["hold", "resume", "refuse", "allow", "vanish", "appear"])),
)


@settings(max_examples=150)
@given(
    script=st.lists(actions, max_size=40),
    plan=st.builds(Plan, st.integers(1, 3), st.integers(1, 4), st.booleans()),
    crash=st.sampled_from([None, ValueError("x"), SystemExit(1), StopIteration()]),
    closes=st.booleans(),
)
def test_laws_under_any_script(virtual_loop: type, script: list, plan: Plan, crash: object, closes: bool) -> None:  # noqa: FBT001
    """Every future ends, jobs run at most once, batches hold one group, holds hold, every lease ends."""

    async def scene() -> None:
        play_on = Script(plan, crash)
        for name, *arguments in script:
            await (asyncio.sleep if name == "sleep" else getattr(play_on, name))(*arguments)
        if closes:
            await play_on.world.batcher.close(grace_s=5.0)
            await settle()
            assert all(task.done() for task in play_on.tasks)
        await asyncio.sleep(20.0)
        play_on.check_batches()
        play_on.check_tasks()

    play(virtual_loop, scene)


def test_an_idle_batcher_starts_at_once(virtual_loop: type) -> None:
    """No timer delays a lone image."""

    async def scene() -> None:
        world = World()
        _, waited = await world.batcher.submit((0, "good"), "g", NEVER)
        assert (world.loop.time(), waited) == (1.0, 0.0)

    play(virtual_loop, scene)


def test_a_freed_lane_takes_everything_that_waits(virtual_loop: type) -> None:
    """What came during a batch forms the next one, up to its limit, oldest first."""

    async def scene() -> None:
        world = World(plan=Plan(1, 3))
        tasks = [asyncio.create_task(world.batcher.submit((0, "good"), "g", NEVER))]
        await settle()
        tasks += [asyncio.create_task(world.batcher.submit((n, "good"), "g", NEVER)) for n in range(1, 6)]
        await asyncio.gather(*tasks)
        assert [[job[0] for job in batch] for batch in world.batches] == [[0], [1, 2, 3], [4, 5]]

    play(virtual_loop, scene)


def test_the_images_of_one_tick_share_a_batch(virtual_loop: type) -> None:
    """A request with several images does not send its first one ahead alone."""

    async def scene() -> None:
        world = World(plan=Plan(1, 8))
        await asyncio.gather(*(world.batcher.submit((n, "good"), "g", NEVER) for n in range(5)))
        assert len(world.batches) == 1

    play(virtual_loop, scene)


def test_the_oldest_group_goes_first(virtual_loop: type) -> None:
    """A popular shape cannot starve a rare one."""

    async def scene() -> None:
        world = World(plan=Plan(1, 2))
        order = ["a", "a", "b", "a", "a"]
        await asyncio.gather(*(world.batcher.submit((n, g, "good"), g, NEVER) for n, g in enumerate(order)))
        assert [[job[0] for job in batch] for batch in world.batches] == [[0, 1], [2], [3, 4]]

    play(virtual_loop, scene)


def test_a_bad_item_leaves_its_mates_alone(virtual_loop: type) -> None:
    """Errors belong to one item."""

    async def scene() -> None:
        world = World(plan=Plan(1, 8))
        jobs = [(0, "good"), (1, "bad"), (2, "good")]
        results = await asyncio.gather(*(world.batcher.submit(j, "g", NEVER) for j in jobs), return_exceptions=True)
        assert isinstance(results[1], InvalidOptionError)
        assert results[0][0] == ("seen", jobs[0])
        assert results[2][0] == ("seen", jobs[2])

    play(virtual_loop, scene)


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), StopIteration(), BackendError("gone")])
def test_a_crash_fails_the_batch_and_the_lane_goes_on(virtual_loop: type, error: BaseException) -> None:
    """Whatever a lane raises, its images get BackendErrors of their own and the next batch runs."""

    async def scene() -> None:
        world = World(plan=Plan(1, 8), error=error)
        failed = await asyncio.gather(
            *(world.batcher.submit((n, "good"), "g", NEVER) for n in range(3)), return_exceptions=True
        )
        assert [type(one) for one in failed] == [BackendError] * 3
        assert len({id(one) for one in failed}) == 3
        world.error = None
        (verdict, _), _ = await world.batcher.submit((9, "good"), "g", NEVER)
        assert verdict == "seen"

    play(virtual_loop, scene)


def test_a_full_queue_refuses_at_the_door(virtual_loop: type) -> None:
    """One more than the limit is refused at once, the others are answered."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), max_queue=2)
        tasks = [asyncio.create_task(world.batcher.submit((0, "good"), "g", NEVER))]
        await settle()
        tasks += [asyncio.create_task(world.batcher.submit((n, "good"), "g", NEVER)) for n in (1, 2)]
        await settle()
        with pytest.raises(OverloadedError, match="limit is 2"):
            await world.batcher.submit((3, "good"), "g", NEVER)
        assert world.loop.time() == 0.0
        await asyncio.gather(*tasks)

    play(virtual_loop, scene)


def test_deadlines_hold_though_no_lane_frees(virtual_loop: type) -> None:
    """A waiting image expires on time while its lane hangs, and so does the running one."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), service_s=1000.0)
        running = asyncio.create_task(world.batcher.submit((0, "good"), "g", 7.0))
        await settle()
        with pytest.raises(DeadlineExceededError):
            await world.batcher.submit((1, "good"), "g", 3.0)
        assert world.loop.time() == pytest.approx(3.0)
        with pytest.raises(DeadlineExceededError):
            await running
        assert world.loop.time() == pytest.approx(7.0)
        assert world.batcher.queued == 0

    play(virtual_loop, scene)


def test_a_passed_deadline_is_refused_at_once(virtual_loop: type) -> None:
    """Nothing is queued that nobody waits for."""

    async def scene() -> None:
        world = World()
        with pytest.raises(DeadlineExceededError):
            await world.batcher.submit((0, "good"), "g", 0.0)
        assert world.batches == []

    play(virtual_loop, scene)


def test_hold_keeps_batches_from_starting(virtual_loop: type) -> None:
    """Under a hold the running batch ends and no other starts; resume lets them go."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1))
        first = asyncio.create_task(world.batcher.submit((0, "good"), "g", NEVER))
        await settle()
        second = asyncio.create_task(world.batcher.submit((1, "good"), "g", NEVER))
        world.batcher.hold()
        await first
        await asyncio.sleep(50.0)
        assert (len(world.batches), world.batcher.queued, world.batcher.held) == (1, 1, True)
        world.batcher.resume()
        await second
        assert world.loop.time() == pytest.approx(52.0)

    play(virtual_loop, scene)


def test_fail_all_refuses_until_it_is_lifted(virtual_loop: type) -> None:
    """In doubt neither waiting nor new images are answered; afterwards they are."""

    async def scene() -> None:
        world = World()
        world.batcher.hold()
        waiting = asyncio.create_task(world.batcher.submit((0, "good"), "g", NEVER))
        await settle()
        world.batcher.fail_all("in doubt")
        for refused in (waiting, world.batcher.submit((1, "good"), "g", NEVER)):
            with pytest.raises(UnavailableError, match="in doubt"):
                await refused
        world.batcher.fail_all(None)
        world.batcher.resume()
        await world.batcher.submit((2, "good"), "g", NEVER)

    play(virtual_loop, scene)


def test_close_ends_what_hangs(virtual_loop: type) -> None:
    """After the grace even an image on a hanging lane gets its error."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), service_s=1000.0)
        tasks = [asyncio.create_task(world.batcher.submit((n, "good"), "g", NEVER)) for n in range(3)]
        await settle()
        await world.batcher.close(grace_s=2.0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in results] == [UnavailableError] * 3
        assert world.loop.time() == pytest.approx(2.0)
        with pytest.raises(UnavailableError):
            await world.batcher.submit((9, "good"), "g", NEVER)

    play(virtual_loop, scene)


def test_a_dead_executor_fails_the_batch() -> None:
    """An executor that is already shut down does not leave its images hanging."""

    async def scene() -> None:
        world = World()

        def refuse(*_: object) -> Future:
            msg = "shut down"
            raise RuntimeError(msg)

        world.batcher._executor.submit = refuse
        with pytest.raises(UnavailableError):
            await world.batcher.submit((0, "good"), "g", world.loop.time() + 60)
        assert world.leases == 0

    asyncio.run(scene())


def test_too_few_results_are_a_backend_error(virtual_loop: type) -> None:
    """A run that forgets a job fails its batch instead of answering with a neighbour's result."""

    async def scene() -> None:
        world = World()
        world.batcher._run = lambda *_: []
        with pytest.raises(BackendError):
            await world.batcher.submit((0, "good"), "g", NEVER)

    play(virtual_loop, scene)


def test_what_waits_can_be_ended_without_running(virtual_loop: type) -> None:
    """Every waiting caller gets the result and how long it waited, in order; what runs goes on, what comes queues."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), service_s=1.0)
        ended: list[int] = []

        async def ask(number: int) -> tuple[object, float]:
            answer = await world.batcher.submit((number, "good"), number % 2, NEVER)
            ended.append(number)
            return answer

        tasks = [asyncio.create_task(ask(0))]
        await settle()
        tasks += [asyncio.create_task(ask(number)) for number in (1, 3, 2)]
        await asyncio.sleep(0.5)
        tasks[-1].cancel()
        world.batcher.end_waiting("anew")
        assert (world.batcher.queued, world.batcher.running) == (0, 1)
        await settle()
        assert ended == [1, 3]
        assert [task.result() for task in tasks[1:3]] == [("anew", 0.5)] * 2
        assert tasks[3].cancelled()
        assert (await tasks[0])[0] == ("seen", (0, "good"))
        assert (await ask(4))[0] == ("seen", (4, "good"))
        assert [batch[0][0] for batch in world.batches] == [0, 4]

    play(virtual_loop, scene)
