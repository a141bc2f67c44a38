"""Landlock (Linux 5.13 and later): a process that may write in one folder only, and reach nobody but itself.

Numbers and structures are those of ``linux/landlock.h``; the system calls have the same numbers on x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

_WRITE_FILE = 1 << 1
_WRITES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
"""Write to files; remove and make files, folders, links, sockets, pipes and devices."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TCP = 0b11
"""Bind and connect."""
_SCOPES = 0b11
"""Abstract Unix sockets of processes outside, and signals to them."""


def confine(folder: Path, *, online: bool) -> bool:
    """Let this process and its children write below ``folder`` and to /dev/null only; for ever.

    Where the kernel can, they also send no signal to a process outside and, unless ``online``, use no TCP. Reading
    stays as it is. Demands ``PR_SET_NO_NEW_PRIVS``.

    Returns whether that is in force: False where the kernel lacks Landlock or has it switched off.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))
    if version < 1:
        return False
    handled = _WRITES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)  # noqa: PLR2004 - of Landlock
    fields = [handled]
    if version >= 4:  # noqa: PLR2004 - likewise
        fields.append(0 if online else _TCP)
    if version >= 6:  # noqa: PLR2004 - likewise
        fields.append(_SCOPES)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = int(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    if ruleset < 0:
        return False
    try:
        for path, rights in ((folder, handled), (Path(os.devnull), handled & (_WRITE_FILE | _TRUNCATE))):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", rights, place)
                if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) != 0:
                    return False
            finally:
                os.close(place)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)
