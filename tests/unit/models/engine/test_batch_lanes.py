"""Lanes and lone items: who gets which lane, who has the machine to itself, and what is not worth running any more."""

from __future__ import annotations

import asyncio

import pytest
from batch_world import NEVER, World, play, settle

from models.engine.backends.backend import Plan
from models.engine.batch import CROWDED_S, Lane
from models.errors import DeadlineExceededError

ALONE = Plan(3, 1, alone=True)
CALL_S = CROWDED_S / 4


def send(world: World, number: int, deadline: float = NEVER) -> asyncio.Task:
    """Send a job."""
    return asyncio.create_task(world.batcher.submit((number, "good"), "g", deadline))


def said_alone(world: World) -> list[bool]:
    """Return for each batch, in the order of their ends, whether it counted as alone."""
    return [lane.alone for lane in world.lanes]


def test_one_client_after_the_other_is_alone(virtual_loop: type) -> None:
    """However quickly requests follow each other, one at a time has the machine to itself, on the first lane."""

    async def scene() -> None:
        world = World(plan=ALONE, service_s=CALL_S)
        for number in range(5):
            await send(world, number)
        assert world.lanes == [Lane(0, alone=True)] * 5

    play(virtual_loop, scene)


def test_nobody_is_alone_where_it_brings_nothing(virtual_loop: type) -> None:
    """A plan that does not tell a lone call from others never gets to hear of one."""

    async def scene() -> None:
        world = World(plan=Plan(3, 1), service_s=CALL_S)
        await send(world, 0)
        assert world.lanes == [Lane(0)]

    play(virtual_loop, scene)


@pytest.mark.parametrize("plan", [ALONE, Plan(1, 1, alone=True), Plan(1, 4, alone=True)], ids=str)
def test_images_of_one_tick_are_not_alone(virtual_loop: type, plan: Plan) -> None:
    """Neither those that run side by side, nor those that follow each other, nor those that share a batch."""

    async def scene() -> None:
        world = World(plan=plan, service_s=CALL_S)
        await asyncio.gather(*(send(world, number) for number in range(3)))
        assert not any(said_alone(world))

    play(virtual_loop, scene)


def test_company_is_remembered_for_a_while(virtual_loop: type) -> None:
    """An image that meets another is not alone, nor is the next one soon after; later ones are again."""

    async def scene() -> None:
        world = World(plan=ALONE, service_s=CALL_S)
        first = send(world, 0)
        await asyncio.sleep(CALL_S / 2)
        await send(world, 1)
        await first
        await send(world, 2)
        await asyncio.sleep(CROWDED_S)
        await send(world, 3)
        assert said_alone(world) == [True, False, False, True]

    play(virtual_loop, scene)


def test_company_counts_from_its_end(virtual_loop: type) -> None:
    """Two slow images that ran side by side for long were company until the first of them ended."""

    async def scene() -> None:
        world = World(plan=ALONE, service_s=10 * CROWDED_S)
        first = send(world, 0)
        await asyncio.sleep(CROWDED_S / 2)
        second = send(world, 1)
        await asyncio.gather(first, second)
        await send(world, 2)
        await asyncio.sleep(CROWDED_S)
        await send(world, 3)
        assert said_alone(world) == [True, False, False, True]

    play(virtual_loop, scene)


def test_a_queue_that_waited_long_is_no_row_of_lone_images(virtual_loop: type) -> None:
    """What waited together is not alone, however long ago it came; a lone image that waited is."""

    async def scene() -> None:
        world = World(plan=ALONE, service_s=CALL_S)
        for together in (3, 1):
            world.batcher.hold()
            waiting = [send(world, number) for number in range(together)]
            await asyncio.sleep(20 * CROWDED_S)
            world.batcher.resume()
            await asyncio.gather(*waiting)
            assert said_alone(world) == [together == 1] * together
            world.lanes.clear()
            await asyncio.sleep(CROWDED_S)

    play(virtual_loop, scene)


def test_a_slow_lane_with_a_queue_is_never_alone(virtual_loop: type) -> None:
    """Images that wait for one lane, each longer than company is remembered, do not count as alone."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1, alone=True), service_s=10 * CROWDED_S)
        first = send(world, 0)
        await settle()
        await asyncio.gather(first, *(send(world, number) for number in range(1, 4)))
        assert said_alone(world) == [True, False, False, False]

    play(virtual_loop, scene)


def test_lanes_are_numbered_from_the_lowest_free_one(virtual_loop: type) -> None:
    """No two batches share a lane, and a freed one is taken again."""

    async def scene() -> None:
        world = World(plan=Plan(3, 1), service_s=1.0)
        tasks = []
        for number in range(3):
            tasks.append(send(world, number))
            await asyncio.sleep(0.1)
        await tasks[1]
        await asyncio.gather(send(world, 3), send(world, 4), *tasks)
        assert [lane.number for lane in world.lanes] == [0, 1, 2, 0, 1]

    play(virtual_loop, scene)


@pytest.mark.parametrize("leaves", ["cancelled", "expired"])
def test_what_nobody_waits_for_is_not_run(virtual_loop: type, leaves: str) -> None:
    """A batch that got a lane but no thread yet is not run any more once all who waited for it have gone."""

    async def scene() -> None:
        world = World(plan=Plan(2, 2), service_s=1.0)
        gone = [send(world, number, 0.5 if leaves == "expired" else NEVER) for number in range(2)]
        await asyncio.sleep(0.1)
        half = [send(world, 2, 0.5 if leaves == "expired" else NEVER), send(world, 3)]
        await asyncio.sleep(0.1)
        if leaves == "cancelled":
            for task in (*gone, half[0]):
                task.cancel()
        answers = await asyncio.gather(*gone, *half, return_exceptions=True)
        kind = asyncio.CancelledError if leaves == "cancelled" else DeadlineExceededError
        assert [type(answer) for answer in answers[:3]] == [kind] * 3
        assert answers[3][0] == ("seen", (3, "good"))
        assert [[job[0] for job in batch] for batch in world.batches] == [[2, 3]]
        assert (world.leases, world.batcher.running) == (0, 0)

    play(virtual_loop, scene)


def test_a_finished_batch_is_told_of_with_its_lane(virtual_loop: type) -> None:
    """Whoever counts hears of every batch once: its jobs, its lane, its seconds and its error."""

    async def scene() -> None:
        world = World(plan=ALONE, service_s=1.0)
        told: list[tuple] = []
        world.batcher._finished = lambda _lease, jobs, *rest: told.append((list(jobs), *rest))
        await send(world, 0)
        world.error = failure = ValueError("x")
        await asyncio.gather(send(world, 1), return_exceptions=True)
        lane = Lane(0, alone=True)
        assert told == [([(0, "good")], lane, 1.0, None), ([(1, "good")], lane, 1.0, failure)]

    play(virtual_loop, scene)


def test_a_reserved_lane_is_left_alone(virtual_loop: type) -> None:
    """Batches run beside it, one less at a time, and start when it is given back."""

    async def scene() -> None:
        world = World(plan=Plan(2, 1), service_s=CALL_S, reserved=0)
        tasks = [send(world, number) for number in range(3)]
        await settle()
        assert world.lanes == []
        await asyncio.sleep(CALL_S)
        await settle()
        assert world.lanes == [Lane(1)]
        world.reserved = None
        world.batcher.lane_freed()
        await asyncio.gather(*tasks)
        assert world.most_running == 2
        assert world.leases == 0

    play(virtual_loop, scene)


def test_a_lone_reserved_lane_is_waited_for(virtual_loop: type) -> None:
    """Where there is no other lane nothing starts before it is free."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), service_s=CALL_S, reserved=0)
        task = send(world, 0)
        await asyncio.sleep(1.0)
        assert (world.lanes, world.leases, world.batcher.queued) == ([], 0, 1)
        world.reserved = None
        world.batcher.lane_freed()
        await task
        assert world.lanes == [Lane(0)]

    play(virtual_loop, scene)


def test_a_lane_is_spared_only_by_an_idle_worker(virtual_loop: type) -> None:
    """It is one that no batch uses, alone where a batch would be; none while something waits, is held or all work."""

    async def scene() -> None:
        plan = Plan(3, 1, alone=True, decodes=True)
        world = World(plan=plan, service_s=CALL_S)
        spare = world.batcher.spare_lane
        assert spare(plan) == Lane(2, alone=True)
        tasks = [send(world, 0)]
        await settle()
        assert (world.batcher.running, spare(plan)) == (1, Lane(2))
        tasks.append(send(world, 1))
        await settle()
        assert (world.batcher.running, spare(plan)) == (2, None)
        await asyncio.gather(*tasks)
        assert spare(plan) == Lane(2)
        await asyncio.sleep(CROWDED_S)
        assert spare(plan) == Lane(2, alone=True)
        world.batcher.hold()
        assert spare(plan) is None
        tasks = [send(world, 2)]
        await settle()
        world.batcher.resume()
        assert spare(plan) is None
        await asyncio.gather(*tasks)

    play(virtual_loop, scene)


def test_each_group_is_leased_for_itself(virtual_loop: type) -> None:
    """What is to answer a group is asked when its batch starts, so that groups may go to different versions."""

    async def scene() -> None:
        world = World(plan=Plan(1, 4), service_s=CALL_S)
        deadline = world.loop.time() + NEVER
        groups = ("old", "old", "new", "old")
        await asyncio.gather(
            *(world.batcher.submit((number, "good"), group, deadline) for number, group in enumerate(groups))
        )
        assert [[job[0] for job in batch] for batch in world.batches] == [[0, 1, 3], [2]]
        assert world.leased_for[0] == "old"
        assert world.leased_for[-1] == "new"

    play(virtual_loop, scene)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_group_whose_lane_is_reserved_holds_up_no_other(virtual_loop: type, lanes: int) -> None:
    """The others pass it however long that lasts; it is the first to go when its lane is given back."""

    async def scene() -> None:
        world = World(plan=Plan(lanes, 1), service_s=CALL_S, reserved=0, reserved_for="new")
        groups = ["old"] * (lanes - 1) + ["new", "old", "old"]
        tasks = [
            asyncio.create_task(world.batcher.submit((number, group), group, NEVER))
            for number, group in enumerate(groups)
        ]
        # With two lanes the new group finds one reserved and the other taken.
        await settle()
        waiting = tasks.pop(groups.index("new"))
        await asyncio.gather(*tasks[:lanes])
        assert not waiting.done()
        world.reserved = None
        world.batcher.lane_freed()
        later = asyncio.create_task(world.batcher.submit((9, "old"), "old", NEVER))
        await asyncio.gather(*tasks, waiting, later)
        ran = [batch[0] for batch in world.batches]
        assert ran.index((groups.index("new"), "new")) < ran.index((9, "old"))
        assert (world.leases, world.batcher.queued) == (0, 0)

    play(virtual_loop, scene)


def test_no_group_passes_one_that_waits_for_batches(virtual_loop: type) -> None:
    """A plan of more lanes does not let younger images go first: the older group's turn would never come."""

    async def scene() -> None:
        world = World(plan=Plan(1, 1), service_s=CALL_S)
        first = send(world, 0)
        await settle()
        older = send(world, 1)
        await settle()
        lease = world.lease
        plans = {"g": Plan(1, 1), "wide": Plan(4, 1)}

        def lease_of_group(group: object) -> object:
            world.plan = plans[str(group)]
            return lease(group)

        world.batcher._lease = lease_of_group
        younger = asyncio.create_task(world.batcher.submit((2, "good"), "wide", NEVER))
        await asyncio.gather(first, older, younger)
        assert [batch[0][0] for batch in world.batches] == [0, 1, 2]
        assert world.leases == 0

    play(virtual_loop, scene)
