"""Letters to a registry that fails, hangs or comes back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from models.errors import RegistryError
from serve.fake_time import run
from serve.outbox import DEADLINE_S, LONGEST_PAUSE_S, MOST_LETTERS, MOST_TRIES, Letter, Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Post:
    """An outbox, what was written, sent and lost. down: names of letters whose writing fails."""

    def __init__(self) -> None:
        """Begin empty."""
        self.down: set[str] = set()
        self.hang: set[str] = set()
        self.error: Exception = RegistryError("down")
        self.tried: list[str] = []
        self.sent: list[str] = []
        self.lost: list[str] = []
        self.running = 0
        self.most = 0
        self.outbox = Outbox(in_thread=self._in_thread, sleep=asyncio.sleep)

    def post(self, name: str) -> None:
        """Post a letter of that name."""
        letter = Letter(name, lambda: self._write(name), lambda: self.sent.append(name), lambda: self.lost.append(name))
        self.outbox.post(letter)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            name = call()
            while name in self.hang:  # noqa: ASYNC110 - time flies here
                await asyncio.sleep(1.0)
        finally:
            self.running -= 1

    def _write(self, name: str) -> str:
        self.tried.append(name)
        if name in self.down:
            raise self.error
        return name


async def _until(post: Post, letters: int) -> None:
    loop = asyncio.create_task(post.outbox.run())
    async with asyncio.timeout(3600.0):
        while len(post.sent) + len(post.lost) < letters:  # noqa: ASYNC110 - time flies here
            await asyncio.sleep(0.5)
    loop.cancel()


def test_letters_are_written_in_their_order() -> None:
    """Once each."""

    async def story() -> None:
        post = Post()
        for name in "abc":
            post.post(name)
        await _until(post, 3)
        assert (post.tried, post.sent, post.lost) == (["a", "b", "c"], ["a", "b", "c"], [])

    run(story())


def test_what_fails_is_tried_again_a_bounded_number_of_times_then_told_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It never keeps the others from being written, whatever it raises."""

    async def story() -> None:
        for error in (RegistryError("down"), ZeroDivisionError("secret")):
            post = Post()
            post.error = error
            post.down = {"a"}
            post.post("a")
            post.post("b")
            await _until(post, 2)
            assert (post.sent, post.lost) == (["b"], ["a"])
            assert post.tried == ["a", "b"] + (MOST_TRIES - 1) * ["a"]

    run(story())
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "the registry will not hold a, the audit file does: down",
        "the registry will not hold a, the audit file does: the log tells why",
    ]


def test_a_registry_that_comes_back_gets_what_waits() -> None:
    """A short outage costs nothing."""

    async def story() -> None:
        post = Post()
        post.down = {"a", "b"}
        post.post("a")
        post.post("b")
        loop = asyncio.create_task(post.outbox.run())
        await asyncio.sleep(5.0)
        post.down = set()
        await asyncio.sleep(2 * LONGEST_PAUSE_S)
        loop.cancel()
        assert (sorted(post.sent), post.lost) == (["a", "b"], [])

    run(story())


def test_a_write_that_hangs_occupies_one_thread_and_ends_at_its_deadline() -> None:
    """The next one waits until that thread is back."""

    async def story() -> None:
        post = Post()
        post.hang = {"a"}
        post.post("a")
        post.post("b")
        loop = asyncio.create_task(post.outbox.run())
        await asyncio.sleep(3 * DEADLINE_S)
        assert (post.tried, post.most) == (["a"], 1)
        post.hang = set()
        await asyncio.sleep(4 * LONGEST_PAUSE_S)
        loop.cancel()
        assert (sorted(post.sent), post.most) == (["a", "b"], 1)

    run(story())


def test_where_too_many_wait_the_oldest_is_lost() -> None:
    """The queue is bounded, and what is lost is told."""

    async def story() -> None:
        post = Post()
        for number in range(MOST_LETTERS + 2):
            post.post(str(number))
        assert post.lost == ["0", "1"]

    run(story())
