"""Work that may wait gives way to the threads that answer images."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Final

NICENESS: Final = 10
"""A tenth of the processor time of a thread that answers, where both want it; all of it where the others rest."""
FORM_NICENESS: Final = 5
"""A third of it: what comes often is answered slower until its form is made, above all on a busy machine."""


def give_way(niceness: int = NICENESS) -> None:
    """Lower the calling thread's priority for good, to 1 to 19; threads that it starts inherit it. Idempotent.

    Only Linux has priorities of threads; elsewhere, and where the system refuses, nothing changes.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            # Where the process gives way already, a privileged thread would come before it.
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
