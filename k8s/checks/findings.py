"""What a check found, and the tools that checks call."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_S: Final = 60.0
"""Time that a tool may take (seconds): each of them takes less than two."""


@dataclass(slots=True)
class Findings:
    """Errors, and checks that could not be made here, each in one line with its reason."""

    errors: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over what another check found."""
        self.errors += other.errors
        self.skipped += other.skipped


def find_tool(name: str) -> str | None:
    """Return the path of a command: beside this Python, where pip puts it, else on the search path; None without it."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def run_tool(command: Sequence[str]) -> tuple[int, str, str]:
    """Return (exit code, standard output, standard error) of ``command``; 124 where it took longer than it may."""
    try:
        done = subprocess.run(  # noqa: S603 - linters on our own files
            command, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"{Path(command[0]).name} took longer than {LONGEST_S:.0f} s"
    return done.returncode, done.stdout, done.stderr


def judge_tool(command: Sequence[str], what: str) -> Findings:
    """Return what a linter says of ``what``: each of its lines is an error where it exits with anything but 0."""
    code, out, err = run_tool(command)
    if code == 0:
        return Findings()
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    return Findings([f"{what}: {line}" for line in lines] or [f"{what}: {Path(command[0]).name} failed with {code}"])
