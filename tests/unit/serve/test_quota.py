"""Requests under limits in one replica: let in, made to wait, refused, and let in without the actor."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING

import pytest

from models.errors import QuotaExceededError, UnavailableError
from models.quota.book import QuotaBook
from models.quota.share import MOST_WAITING, QuotaShare
from serve.access import Scope, issue
from serve.fake_time import run
from serve.prometheus import PrometheusSink
from serve.quota import WAIT_S, QuotaLimits
from serve.quota_desk import QuotaDesk
from serve.rollout_actor import RolloutActor
from serve.rollout_client import RolloutClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.quota.messages import Grant, Report
    from serve.access import AccessKey


def key(rate_per_s: float | None = None, concurrency: int | None = None) -> AccessKey:
    """Return a key with these limits."""
    return issue("till", [Scope.PREDICT], 0.0, rate_per_s=rate_per_s, concurrency=concurrency, key_id="k2345678")[0]


class FakeActor:
    """A book behind a call that takes a moment; ``down`` and it does not answer."""

    def __init__(self) -> None:
        """Open a book that has long been open. Call it on the running loop."""
        self.clock = asyncio.get_running_loop().time
        self.book = QuotaBook(self.clock() - 1000.0)
        self.down = False
        self.hangs = False
        self.asked = 0

    async def ask(self, report: Report) -> Grant:
        """Answer after 2 ms."""
        self.asked += 1
        await asyncio.sleep(3600.0 if self.hangs else 0.002)
        if self.down:
            msg = "the rollout cannot be reached now"
            raise UnavailableError(msg)
        return self.book.take(report, 2, self.clock())

    def limits(self, sink: PrometheusSink | None = None, name: str = "one") -> QuotaLimits:
        """Return the limits of a replica."""
        share = QuotaShare(name, replicas=2, longest_s=31.0)
        return QuotaLimits(share, self.ask, sink or PrometheusSink(), clock=self.clock)


async def send(limits: QuotaLimits, used: AccessKey, work_s: float = 0.0) -> str:
    """Send one request and return what came of it."""
    try:
        await limits.enter(used)
    except QuotaExceededError:
        return "refused"
    try:
        await asyncio.sleep(work_s)
    finally:
        limits.leave(used)
    return "answered"


def test_a_key_without_limits_costs_nothing() -> None:
    """No task, no report."""

    async def story() -> None:
        actor = FakeActor()
        limits = actor.limits()
        await limits.enter(key())
        limits.leave(key())
        assert (actor.asked, limits._reports) == (0, None)

    run(story())


def test_more_than_the_rate_is_refused_with_the_time_to_wait() -> None:
    """Of ten five find a full bucket and one waits for its token; four are told when the next comes."""

    async def story() -> None:
        sink = PrometheusSink()
        limits = FakeActor().limits(sink)
        outcomes = await asyncio.gather(*(limits.enter(key(5.0)) for _ in range(10)), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, QuotaExceededError)]
        assert [outcomes.count(None), len(refused)] == [6, 4]
        assert all("5 requests a second" in str(each) and 0.0 < each.retry_after_s <= 0.4 for each in refused)
        text = sink.render().decode()
        assert 'steelyard_quota_requests_total{key="k2345678",outcome="rate"} 4.0' in text
        await limits.close()

    run(story())


def test_a_slow_rate_says_how_long() -> None:
    """One request in ten seconds: whoever comes a second later waits for nine."""

    async def story() -> None:
        limits = FakeActor().limits()
        assert await send(limits, key(0.1)) == "answered"
        await asyncio.sleep(1.0)
        with pytest.raises(QuotaExceededError) as refusal:
            await limits.enter(key(0.1))
        assert 8.0 <= refusal.value.retry_after_s <= 9.5
        await limits.close()

    run(story())


def test_a_request_over_the_concurrency_waits_a_moment_for_another_to_end() -> None:
    """Of two at once with one permit the second follows the first, unless that takes too long."""

    async def story() -> None:
        limits = FakeActor().limits()
        assert await asyncio.gather(*(send(limits, key(None, 1), 0.1) for _ in range(2))) == ["answered"] * 2
        assert await asyncio.gather(*(send(limits, key(None, 1), 1.0) for _ in range(2))) == ["answered", "refused"]
        with pytest.raises(QuotaExceededError, match="1 requests at once"):
            await asyncio.gather(*(limits.enter(key(None, 1)) for _ in range(2)))
        await limits.close()

    run(story())


def test_two_replicas_share_one_permit() -> None:
    """Requests to both, one after the other, are all answered; two at once never overlap."""

    async def story() -> None:
        actor = FakeActor()
        both = [actor.limits(name="one"), actor.limits(name="two")]
        running = most = 0

        async def one(limits: QuotaLimits) -> str:
            nonlocal running, most
            try:
                await limits.enter(key(None, 1))
            except QuotaExceededError:
                return "refused"
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            limits.leave(key(None, 1))
            return "answered"

        for number in range(20):
            assert await one(both[number % 2]) == "answered"
        assert "answered" in await asyncio.gather(*(one(both[number % 2]) for number in range(20)))
        assert most == 1
        for limits in both:
            await limits.close()

    run(story())


def test_no_more_than_so_many_wait() -> None:
    """The others are refused at once."""

    async def story() -> None:
        actor = FakeActor()
        actor.hangs = True
        limits = actor.limits()
        waiting = [asyncio.create_task(limits.enter(key(None, 1))) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        before = actor.clock()
        with pytest.raises(QuotaExceededError):
            await limits.enter(key(None, 1))
        assert actor.clock() - before < 0.1
        await asyncio.gather(*waiting, return_exceptions=True)
        await limits.close()

    run(story())


@pytest.mark.parametrize("trouble", ["down", "hangs"])
def test_without_the_actor_the_replica_goes_on_by_its_part_and_comes_back(trouble: str) -> None:
    """Half of 20 a second for one of two replicas; a gauge says so; with the actor back it is all of it again."""

    async def story() -> None:
        sink = PrometheusSink()
        actor = FakeActor()
        limits = actor.limits(sink)

        async def answered(seconds: float) -> int:
            found = 0
            for _ in range(int(seconds * 100)):
                found += await send(limits, key(20.0)) == "answered"
                await asyncio.sleep(0.01)
            return found

        await answered(2.0)
        setattr(actor, trouble, True)
        await answered(2.0)
        assert "steelyard_quota_fallback 1.0" in sink.render().decode()
        before = actor.clock()
        found = await answered(5.0)
        assert found == pytest.approx(10.0 * (actor.clock() - before), rel=0.1)
        setattr(actor, trouble, False)
        await answered(2.0)
        assert "steelyard_quota_fallback 0.0" in sink.render().decode()
        before = actor.clock()
        found = await answered(5.0)
        assert found == pytest.approx(20.0 * (actor.clock() - before), rel=0.1)
        await limits.close()

    run(story())


@pytest.mark.parametrize("moment_s", [0.0005, 0.0021, 0.05, WAIT_S])
def test_a_client_that_leaves_while_it_waits_keeps_nothing(moment_s: float) -> None:
    """Whenever it leaves, the next request finds the permit."""

    async def story() -> None:
        limits = FakeActor().limits()
        holder = asyncio.create_task(send(limits, key(None, 1), moment_s))
        await asyncio.sleep(0)
        for _ in range(3):
            leaver = asyncio.create_task(limits.enter(key(None, 1)))
            asyncio.get_running_loop().call_later(moment_s, leaver.cancel)
            await asyncio.gather(leaver, return_exceptions=True)
            if not leaver.cancelled() and leaver.exception() is None:
                limits.leave(key(None, 1))
        await holder
        await asyncio.sleep(0.5)
        assert await send(limits, key(None, 1)) == "answered"
        await asyncio.sleep(1.0)
        assert limits._share.idle
        assert limits._reports is not None
        assert limits._reports.done()
        assert not limits._queues

    run(story())


def test_a_flaw_in_the_answer_ends_nothing() -> None:
    """Whatever the actor answers, the replica goes on by itself."""

    async def story() -> None:
        actor = FakeActor()
        limits = actor.limits()

        async def nonsense(_: Report) -> Grant:
            return None  # type: ignore[return-value]

        limits._ask = nonsense
        assert await send(limits, key(5.0)) == "answered"
        await limits.close()

    run(story())


def desk(names: Callable[[], frozenset[str] | None]) -> QuotaDesk:
    """Return a desk that is open, which hears of live replicas from ``names``."""

    async def in_thread(call: Callable[[], object]) -> object:
        await asyncio.sleep(0.01)
        return call()

    clock = asyncio.get_running_loop().time
    made = QuotaDesk(names=names, in_thread=in_thread, replicas=lambda: 2, clock=clock)
    made._book = QuotaBook(clock() - 1000.0)
    return made


@pytest.mark.parametrize(
    ("names", "least_s", "most_s"), [({"two"}, 0.5, 2.0), (None, 3.0, 4.5), ({"one", "two"}, 3.0, 4.5)]
)
def test_permits_of_the_dead_come_back_soon_and_of_the_silent_later(
    names: set[str] | None, least_s: float, most_s: float
) -> None:
    """Who is not on the list of live replicas is dead; who is, or where there is no list, may still be answering."""

    async def story() -> None:
        opened = desk(lambda: None if names is None else frozenset(names))
        loop = asyncio.get_running_loop()

        async def ask(report: Report) -> Grant:
            return opened.take(report)

        shares = {name: QuotaShare(name, replicas=2, longest_s=2.5) for name in ("one", "two")}
        one, two = (QuotaLimits(share, ask, PrometheusSink(), clock=loop.time) for share in shares.values())
        await one.enter(key(None, 1))
        await one.close()
        silent = loop.time()
        while await send(two, key(None, 1)) == "refused":  # each waits for WAIT_S
            pass
        assert least_s <= loop.time() - silent <= most_s
        await two.close()

    run(story())


def test_a_list_that_cannot_be_read_proves_no_death() -> None:
    """The desk goes on."""

    async def story() -> None:
        def broken() -> frozenset[str]:
            raise OSError

        opened = desk(broken)
        await opened._bury(frozenset({"one"}))

    run(story())


def test_a_report_reaches_the_book_through_client_and_actor() -> None:
    """As Ray carries them: report and grant survive pickling, and the actor needs no ledger to answer."""

    async def story() -> None:
        actor = object.__new__(RolloutActor)
        actor._quota = desk(lambda: None)

        class FakeHandle:
            """Fakes an actor's handle: arguments and answer travel as bytes."""

            @property
            def quota(self) -> FakeHandle:
                return self

            async def remote(self, report: Report) -> Grant:
                grant: Grant = pickle.loads(pickle.dumps(await actor.quota(pickle.loads(pickle.dumps(report)))))  # noqa: S301
                return grant

        async def renew(_: object) -> object:
            raise AssertionError

        client = RolloutClient(FakeHandle(), renew)
        clock = asyncio.get_running_loop().time
        limits = QuotaLimits(QuotaShare("one", replicas=2, longest_s=31.0), client.quota, PrometheusSink(), clock=clock)
        assert await send(limits, key(5.0, 2)) == "answered"
        assert not limits._share.unanswered
        await limits.close()

    run(story())
