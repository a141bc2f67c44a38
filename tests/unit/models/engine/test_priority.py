"""Work that may wait gives way."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.engine.priority import NICENESS, give_way


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
