"""Work that may wait gives way."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from models.engine.priority import LOWEST, NICENESS, SPARE, Background, give_way, stand_back

if TYPE_CHECKING:
    from collections.abc import Callable

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def niceness() -> int:
    """Return the calling thread's."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def policy() -> int:
    """Return the scheduling policy of the calling thread."""
    return os.sched_getscheduler(threading.get_native_id())


@linux
@pytest.mark.parametrize("lower", [give_way, stand_back])
def test_only_the_thread_that_asks_gives_way(lower: Callable[[], None]) -> None:
    """Its children do too, the threads that answer do not, and asking twice changes nothing more."""

    def look() -> tuple[int, int]:
        return niceness(), policy()

    def ask() -> tuple[tuple[int, int], tuple[int, int]]:
        lower()
        lower()
        with ThreadPoolExecutor(1) as child:
            return look(), child.submit(look).result()

    before = look()
    with ThreadPoolExecutor(1) as pool:
        own, child = pool.submit(ask).result()
    assert own == child
    assert own == ((LOWEST, os.SCHED_IDLE) if lower is stand_back else (max(before[0], NICENESS), before[1]))
    assert look() == before


@linux
@pytest.mark.parametrize("spare", [0.0, SPARE - 0.01, SPARE, 1.0])
def test_only_a_machine_with_time_to_spare_lets_work_live_on_it(spare: float) -> None:
    """On a busy one it would never end: there it gets its third of the processor."""
    before = policy()
    found = Background(lambda: spare).run(policy)
    assert (found == os.SCHED_IDLE) == (spare >= SPARE)
    assert policy() == before


def test_each_piece_of_work_chooses_anew() -> None:
    """What began while nobody asked for anything does not hold back what follows in the rush."""
    shares = iter([1.0, 0.0])
    background = Background(lambda: next(shares))
    threads = {background.run(threading.get_ident), background.run(niceness)}
    assert len(threads) == 2
    assert next(shares, None) is None


def test_results_and_errors_come_back() -> None:
    """Whatever the work raises, the caller meets it, and what looking at the machine raises."""
    background = Background(lambda: 0.0)
    assert background.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        background.run(divmod, 7, 0)
    with pytest.raises(SystemExit):
        background.run(sys.exit)

    def broken() -> float:
        msg = "no such file"
        raise OSError(msg)

    with pytest.raises(OSError, match="no such file"):
        Background(broken).run(niceness)
