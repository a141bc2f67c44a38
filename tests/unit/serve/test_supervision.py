"""Tasks that must not die silently."""

import asyncio

import pytest

from serve.supervision import Supervisor


async def forever() -> None:
    """Do nothing and do not end."""
    await asyncio.Event().wait()


async def broken() -> None:
    """End with an error."""
    msg = "boom"
    raise RuntimeError(msg)


async def finished() -> None:
    """End, although no supervised task may."""


async def test_running_tasks_are_no_failure() -> None:
    """Nothing is reported while all go on, nor after they were stopped on purpose."""
    supervisor = Supervisor()
    supervisor.start("loop", forever())
    await asyncio.sleep(0)
    assert supervisor.failure() is None
    await supervisor.stop()
    assert supervisor.failure() is None
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "loop"]


@pytest.mark.parametrize("work", [broken, finished])
async def test_a_task_that_ends_is_named(work: object, caplog: pytest.LogCaptureFixture) -> None:
    """Whether by an error or by itself: the health check tells which loop is gone, the log why."""
    supervisor = Supervisor()
    supervisor.start("a", forever())
    supervisor.start("b", work())  # type: ignore[operator]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert supervisor.failure() == "b has stopped"
    assert "must go on has ended" in caplog.text
    await supervisor.stop()


async def test_a_swallowed_cancellation_is_repeated() -> None:
    """A loop that loses one cancellation, as ``asyncio.wait_for`` can make it do, is ended all the same."""
    lost: list[int] = []

    async def deaf_once() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(1)

    supervisor = Supervisor()
    supervisor.start("deaf", deaf_once())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await supervisor.stop()
    assert lost == [1]
