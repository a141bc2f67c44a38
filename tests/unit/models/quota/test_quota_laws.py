"""The laws of the quota over any interleaving of replicas, lost and late messages, deaths and lives of the book."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quota_world import World

from models.quota import book
from models.quota.bucket import burst_of
from models.quota.messages import Limit

LITTLE = 1e-6

limits = st.builds(
    Limit, st.sampled_from([None, 0.5, 1.0, 3.0, 20.0, 50.0]), st.sampled_from([None, 1, 2, 3, 8])
).filter(lambda limit: limit != Limit())
worlds = st.builds(
    World,
    limits,
    st.integers(0, 2**32),
    replicas=st.integers(1, 4),
    demand_hz=st.sampled_from([1.0, 8.0, 60.0]),
    work_s=st.sampled_from([0.0, 0.03, 0.4, 1.9]),
)
networks = st.tuples(st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from([0.001, 0.05, 0.4, 1.2]))
events = st.lists(st.tuples(st.floats(0.1, 3.0), st.sampled_from(["pause", "kill", "rush", "lull"])), max_size=6)


def play(world: World, story: list[tuple[float, str]], network: tuple[float, float]) -> None:
    """Let the story happen over a network of that loss and delay."""
    world.loss, world.longest_delay_s = network
    for seconds, event in story:
        world.run(seconds)
        happen(world, event)
    world.run(2.0)


def happen(world: World, event: str) -> None:
    """Let one event happen to a replica."""
    index = world.random.randrange(len(world.alive))
    if event == "kill":
        world.kill(index)
    elif event == "lull":
        world.alive[index].demand_hz = 0.0
    elif event == "rush":
        for _ in range(30):
            world.request(world.alive[index])
        world.alive[index].demand_hz = world.demand_hz


def hold(world: World) -> None:
    """Assert that no law is broken."""
    rate, concurrency = world.limit.rate_per_s, world.limit.concurrency
    if rate is not None:
        assert world.overdraft() <= LITTLE
        burst = max(1.0, burst_of(rate) / world.replicas)
        for name in {each.replica for each in world.log}:
            assert world.overdraft(own=name, rate=rate / world.replicas, burst=burst) <= LITTLE
    if concurrency is not None:
        assert world.most_by_book <= concurrency


@given(world=worlds, story=events, network=networks)
@settings(max_examples=60, deadline=None)
def test_no_more_is_admitted_than_the_limits_however_messages_fare_and_replicas_die(
    world: World, story: list[tuple[float, str]], network: tuple[float, float]
) -> None:
    """By the book: rate x T + burst in any T, and the limit in flight. Alone: the replica's part of the rate."""
    play(world, story, network)
    hold(world)


def test_what_was_let_in_alone_is_no_permit_to_keep() -> None:
    """A replica that was alone for a moment reports its request in flight, while another holds the only permit."""
    world = World(Limit(None, 1), 19655, replicas=2, demand_hz=8.0, work_s=0.4)
    play(world, [], (0.05, 0.05))
    hold(world)


@given(world=worlds, story=events, again=events, down_s=st.sampled_from([0.0, 0.3, 1.5, 4.0]))
@settings(max_examples=60, deadline=None)
def test_a_restart_of_the_book_doubles_nothing(
    world: World, story: list[tuple[float, str]], again: list[tuple[float, str]], down_s: float
) -> None:
    """What both lives grant obeys the limits of one; requests in flight are taken over."""
    play(world, story, (0.0, 0.02))
    world.restart(down_s)
    play(world, again, (0.0, 0.02))
    hold(world)


@given(
    rate=st.sampled_from([1.0, 2.0, 10.0, 40.0]),
    replicas=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    phase=st.floats(0.0, 1.0),
)
@settings(max_examples=25, deadline=None)
def test_with_demand_everywhere_every_replica_gets_its_part_and_little_is_wasted(
    rate: float, replicas: int, seed: int, phase: float
) -> None:
    """In 20 s nine tenths of the rate are used, and nobody waits longer than two rounds of all replicas."""
    world = World(Limit(rate), seed, replicas=replicas, demand_hz=60.0)
    world.run(phase)
    began = world.now
    world.run(20.0)
    admitted = [each for each in world.log if each.moment >= began]
    assert 0.9 * 20.0 * rate - 1.0 <= len(admitted) <= 20.0 * rate + burst_of(rate)
    for replica in world.alive:
        moments = [began, *(each.moment for each in admitted if each.replica == replica.name), world.now]
        longest = max(later - earlier for earlier, later in pairwise(moments))
        assert longest <= 2.0 * replicas / rate + 1.0


@given(concurrency=st.integers(1, 3), replicas=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_few_permits_go_round(concurrency: int, replicas: int, seed: int) -> None:
    """Of one to three permits every replica of four gets its turns, and they are in use most of the time."""
    world = World(Limit(None, concurrency), seed, replicas=replicas, demand_hz=60.0, work_s=0.2)
    world.run(20.0)
    assert len(world.log) >= 0.5 * concurrency * 20.0 / 0.2
    for replica in world.alive:
        moments = [100.0, *(each.moment for each in world.log if each.replica == replica.name), world.now]
        longest = max(later - earlier for earlier, later in pairwise(moments))
        assert longest <= 2.0 + replicas * 0.5


@pytest.mark.parametrize("gap_s", [0.0, 0.05, 0.3, 1.0, 3.0])
def test_one_request_after_the_other_is_never_refused(gap_s: float) -> None:
    """Whichever replica each comes to, a single permit is there in time."""
    world = World(Limit(None, 1), 1, replicas=3, demand_hz=0.0, work_s=0.05)
    for number in range(40):
        replica = world.alive[number % 3]
        before = replica.admitted
        world.request(replica)
        while replica.admitted == before or replica.in_flight:
            world.step()
            assert not replica.refused
        world.run(gap_s)


@pytest.mark.parametrize("rate", [0.5, 2.0, 20.0])
def test_a_client_that_keeps_to_its_rate_is_never_refused(rate: float) -> None:
    """Evenly spaced, at 95 % of the limit, to the replicas in turns."""
    world = World(Limit(rate), 1, replicas=3, demand_hz=0.0, work_s=0.02)
    for number in range(60):
        world.request(world.alive[number % 3])
        world.run(1.0 / (0.95 * rate))
    assert [replica.refused for replica in world.alive] == [[], [], []]


def test_nothing_is_reported_while_nothing_happens() -> None:
    """Half a second after the last request all shares are silent, and have given everything back."""
    world = World(Limit(20.0, 4), 2, demand_hz=40.0)
    world.run(2.0)
    for replica in world.alive:
        replica.demand_hz = 0.0
    world.run(1.0)
    said = world.reports
    world.run(5.0)
    assert world.reports == said
    assert all(replica.share.idle for replica in world.alive)
    assert not any(key.holdings for key in world.book._keys.values())


def test_a_dead_replicas_permits_come_back_soon() -> None:
    """Who died with both permits in flight keeps nobody waiting for longer than two seconds."""
    world = World(Limit(None, 2), 3, replicas=2, demand_hz=0.0, work_s=2.0)
    world.request(world.alive[0])
    world.request(world.alive[0])
    world.run(0.5)
    assert world.alive[0].admitted == 2
    world.kill(0)
    died = world.now
    world.alive[1].demand_hz = 20.0
    while world.alive[1].first is None:
        world.step()
    assert world.alive[1].first - died <= 2.0


def test_replicas_go_on_by_their_part_while_there_is_no_book() -> None:
    """Half of the rate each, from the first quarter of a second on, and the whole again once there is a book."""
    world = World(Limit(20.0, 4), 4, replicas=2, demand_hz=60.0, work_s=0.01)
    world.run(3.0)
    world.restart(10.0)
    world.run(1.0)
    before = len(world.log)
    world.run(8.0)
    assert 0.9 * 160.0 <= len(world.log) - before <= 160.0 + 2.0
    assert all(replica.share.unanswered for replica in world.alive)
    world.run(5.0)
    before = len(world.log)
    world.run(10.0)
    assert 0.9 * 200.0 <= len(world.log) - before <= 220.0
    assert not any(replica.share.unanswered for replica in world.alive)


# Planted flaws, each of which the laws must find


def breaks(world: World) -> bool:
    """Return whether a law is broken."""
    try:
        hold(world)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("limit", "opening_s"), [(Limit(20.0), -1000.0), (Limit(None, 2), 0.0)], ids=["full at birth", "open at once"]
)
def test_the_laws_find_a_book_that_grants_twice_after_a_restart(limit: Limit, opening_s: float) -> None:
    """A new life must begin with empty buckets, and grant nothing before it knows what is in flight."""

    def restarted(seed: int) -> World:
        world = World(limit, seed, work_s=1.5, demand_hz=60.0, opening_s=opening_s)
        world.run(3.0)
        world.restart(0.0)
        world.run(1.0)
        return world

    assert any(breaks(restarted(seed)) for seed in range(5))


def test_the_laws_find_a_book_that_takes_permits_back_when_a_lease_ends() -> None:
    """Who is silent and not dead may still have requests in flight: here all say that none of theirs lasts."""

    def cut_off(seed: int) -> World:
        world = World(Limit(None, 2), seed, work_s=1.9, demand_hz=60.0, loss=0.6, longest_s=0.0)
        world.run(30.0)
        return world

    assert any(breaks(cut_off(seed)) for seed in range(5))


def test_the_laws_find_a_bucket_that_fills_while_tokens_are_lent() -> None:
    """A level that does not count lent tokens grows past the burst."""

    def forgetful(self: book.QuotaBook, key: object, replica: str, wanted: int, now: float) -> tuple[int, float]:
        del self, replica, now
        return wanted, 0.0 if key else 1.0

    with patch.object(book.QuotaBook, "_lend", forgetful):
        world = World(Limit(5.0), 0, demand_hz=60.0)
        world.run(3.0)
    assert breaks(world)
