"""Work that may wait gives way."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.engine.priority import NICENESS, give_way, loaders_give_way, name_loader

LOW = 17


def niceness() -> int:
    """Return the calling thread's."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_only_the_thread_that_asks_gives_way() -> None:
    """Its children do too, the threads that answer do not, and asking twice changes nothing more."""

    def ask() -> tuple[int, int]:
        give_way()
        give_way()
        with ThreadPoolExecutor(1) as child:
            return niceness(), child.submit(niceness).result()

    before = niceness()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result() == (max(before, NICENESS), max(before, NICENESS))
    assert niceness() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_nobody_comes_forward_by_giving_way() -> None:
    """Where a thread or its process is far back already, a privileged one must not rise to the niceness asked for."""

    def ask() -> int:
        give_way(LOW)
        give_way()
        return niceness()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ask).result() == LOW


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
@pytest.mark.parametrize("named", [True, False])
def test_what_a_loader_has_started_gives_way_with_it(*, named: bool) -> None:
    """Whatever its priority was; nobody else does, none comes forward, and a thread without the name asks in vain."""

    def ask() -> tuple[int, int, int]:
        if named:
            name_loader()
        with ThreadPoolExecutor(1) as child, ThreadPoolExecutor(1) as low:
            child.submit(niceness).result()
            low.submit(give_way, LOW + 1).result()
            give_way()
            loaders_give_way()
            return niceness(), child.submit(niceness).result(), low.submit(niceness).result()

    before = niceness()
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as stranger:
        stranger.submit(niceness).result()
        mine = max(before, NICENESS)
        assert pool.submit(ask).result() == (mine, mine if named else before, max(before, LOW + 1))
        assert stranger.submit(niceness).result() == before
    assert niceness() == before
