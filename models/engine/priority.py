"""Work that may wait gives way to the threads that answer images."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Final

NICENESS: Final = 10
"""A tenth of the processor time of a thread that answers, where both want it; all of it where the others rest."""
LOAD_NICENESS: Final = 15
"""A twenty-eighth, for what loads: many threads of it run side by side, and together they would take too much."""
FORM_NICENESS: Final = 5
"""A third of it: what comes often is answered slower until its form is made, above all on a busy machine."""

LOADER: Final = b"steelyard load"
"""At most 15 bytes, as Linux has it."""
_THREADS: Final = Path("/proc/self/task")


def give_way(niceness: int = NICENESS) -> None:
    """Lower the calling thread's priority for good, to 1 to 19; threads that it starts inherit it. Idempotent.

    Only Linux has priorities of threads; elsewhere, and where the system refuses, nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            # Where the process gives way already, a privileged thread would come before it.
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))


def name_loader() -> None:
    """Name the calling thread, and so those that it starts from now on, for ``loaders_give_way``.

    Where the system has no names of threads, nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            (_THREADS / str(threading.get_native_id()) / "comm").write_bytes(LOADER)


def loaders_give_way() -> None:
    """Lower every thread of the name to the priority of the calling one, if that carries the name, too. Idempotent.

    Runtimes keep the threads that they compile with and use them again: those that were started before there was
    anybody to give way to would compile at the priority of what answers. They must do nothing but work that may wait.
    """
    if sys.platform != "linux":
        return
    me = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, me)
    with contextlib.suppress(OSError):
        if (_THREADS / str(me) / "comm").read_bytes().strip() != LOADER:
            return
        for thread in _THREADS.iterdir():
            with contextlib.suppress(OSError):  # it has ended
                number = int(thread.name)
                named = (thread / "comm").read_bytes().strip() == LOADER
                if named and os.getpriority(os.PRIO_PROCESS, number) < niceness:
                    os.setpriority(os.PRIO_PROCESS, number, niceness)
