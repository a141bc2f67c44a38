"""Runs a program that tells a story in JSON lines, and returns what it told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent


@contextlib.contextmanager
def story_folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for unix sockets; its processes and all that is in it go in the end."""
    folder = Path(tempfile.mkdtemp(prefix="sn"))
    try:
        yield folder
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # Ray may outlive a story that it ended; nobody else's command names this folder.
                if process.pid != os.getpid() and str(folder) in " ".join(process.cmdline()):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def told(command: Sequence[str], *, given: object = None, within_s: float) -> list[dict[str, Any]]:
    """Run ``command`` with ``given`` as a line of JSON on its input; return what it printed, though it may have died.

    Raises AssertionError with the end of its errors where it told nothing.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            printed, _ = program.communicate(json.dumps(given) + "\n", timeout=within_s)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            printed, _ = program.communicate(timeout=10)
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        errors.seek(0)
        assert lines, errors.read()[-4000:]
        if lines[-1]["what"] != "end":
            lines.append({"what": "broken off", "at": lines[-1]["at"], "errors": errors.read()[-4000:]})
        return lines


def moments(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return when each thing happened, the last time that it did."""
    return {line["what"]: line["at"] for line in lines}


def only(lines: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Return the lines about ``what``."""
    return [line for line in lines if line["what"] == what]
