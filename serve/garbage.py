"""Keeps Python's garbage collector from halting a process that answers.

A full collection looks at every object under the interpreter's lock: of what the imports leave behind (some 140 000
objects) that took 0.3 s on a busy machine, in which nothing is answered and no swap goes on.
"""

from __future__ import annotations

import gc


def spare_what_stays() -> None:
    """Let collections from now on pass over every object that lives already; blocks for one full collection.

    For a process that has imported what it needs and has not loaded a release yet: cycles among spared objects are
    never freed.
    """
    gc.collect()
    gc.freeze()
