"""Work that may wait gives way."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.engine.priority import NICENESS, give_way

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
