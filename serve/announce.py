"""What ``steelyard serve`` tells the person who started it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from models import demo

if TYPE_CHECKING:
    from collections.abc import Sequence


class Announcer:
    """Writes notes and progress to one stream and the address of the service to another.

    Both are kept as given: while Ray runs, this process's standard streams lead into a file. Thread-safe.
    """

    def __init__(self, out: TextIO, notes: TextIO) -> None:
        """Write the address to ``out``, everything else to ``notes``."""
        self._out = out
        self._console = Console(file=notes, highlight=False)
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def say(self, line: str) -> None:
        """Write one line for people."""
        self._console.print(escape(line), style="dim", soft_wrap=True)

    def progress(self, stage: str, fraction: float) -> None:
        """Show that ``stage`` is done to ``fraction`` (0 to 1); only on a terminal."""
        if not self._console.is_terminal:
            return
        if self._bars is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bars = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
            self._task = self._bars.add_task("", total=1.0)
            self._bars.start()
        if self._task is not None:
            self._bars.update(self._task, description=escape(stage), completed=fraction)

    def clear(self) -> None:
        """Take the progress bar away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def ready(self, url: str, serving: Sequence[str], seconds: float, *, with_key: bool = False) -> None:
        """Write where the service answers and a command to try it with.

        serving: one phrase a model, such as ``checkout version 2``. seconds: since the start. with_key: detecting
        takes an API key.
        """
        hint = "Try it, with a key of `steelyard access add`" if with_key else "Try it"
        self._out.write(
            f"Steelyard serves {', '.join(serving)} at {url} (ready after {seconds:.0f} s; Ctrl-C stops it)\n"
            f"{hint}:\n  {curl(url, with_key=with_key)}\nAll routes: {url}/docs\n"
        )
        self._out.flush()


def curl(url: str, here: Path | None = None, *, with_key: bool = False) -> str:
    """Return a shell command that posts the sample tray to ``url``; its path is short where it lies below ``here``.

    with_key: it sends the API key of the environment.
    """
    tray, folder = demo.SAMPLE_TRAY, here or Path.cwd()
    path = os.path.relpath(tray, folder) if tray.is_relative_to(folder) else str(tray)
    key = ' -H "X-Api-Key: $STEELYARD_API_KEY"' if with_key else ""
    return f"curl -s --data-binary @{shlex.quote(path)} -H 'Content-Type: image/jpeg'{key} {url}/v1/detect"
