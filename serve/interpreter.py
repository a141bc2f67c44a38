"""Sets Python up for a process that answers while it also loads, collects and writes.

A full garbage collection looks at every object under the interpreter's lock: of what the imports leave behind (some
140 000 objects) that took 0.3 s on a busy machine, in which nothing is answered and no swap goes on. And a thread that
runs Python keeps that lock for 5 ms after another has asked for it: an image that crosses from the event loop to a lane
and back asks several times.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

SWITCH_S: Final = 0.0005
"""Seconds for which a thread may keep the interpreter's lock while another waits; Python's default is 0.005."""


def hand_over_soon() -> None:
    """Let threads of this process wait no longer than ``SWITCH_S`` for one that runs Python, for good.

    It says nothing of calls that keep the lock inside: those end when they end.
    """
    sys.setswitchinterval(SWITCH_S)


def spare_what_stays() -> None:
    """Let collections from now on pass over every object that lives already; blocks for one full collection.

    For a process that has imported what it needs and has not loaded a release yet: cycles among spared objects are
    never freed.
    """
    gc.collect()
    gc.freeze()
