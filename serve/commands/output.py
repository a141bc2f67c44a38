"""What all commands share: options, consoles, tables, JSON, and the one place where an error becomes a line."""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import ReleaseError, SteelyardError

if TYPE_CHECKING:
    from collections.abc import Iterable

FAILED = 1
"""Exit code of an outcome that is a refusal or a failure: a release or a rollout refused, a picture unanswered."""
UNUSABLE = 2
"""Exit code of a command that could not be carried out at all."""

_REFUSALS = frozenset({"release_rejected", "release_fault", "conversion_failed", "superseded", "backup_refused"})

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of registry and cache.  [env: STEELYARD_HOME, else .steelyard]")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="STEELYARD_URL", help="Address of the service; default: the one of the home folder."),
]

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="STEELYARD_API_KEY",
        help="API key to send; others on this machine can see it, so better put it into the environment.",
    ),
]

Progress = Callable[[str, float], None]
"""Takes what is being done and how much of it is (0 to 1)."""


DEBUG: ContextVar[bool] = ContextVar("debug", default=False)
"""Whether an unexpected error keeps its traceback."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` such that every error ends as one line on stderr and an exit code, never as a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except SteelyardError as error:
            fail(str(error))
            raise typer.Exit(exit_code(error)) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if DEBUG.get():
                raise
            if isinstance(error, OSError) and error.strerror:
                fail(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
            else:
                fail(f"unexpected {type(error).__name__}: {error}; run it as `steelyard --debug ...` to see where")
            raise typer.Exit(UNUSABLE) from None

    return run


def exit_code(error: SteelyardError) -> int:
    """Return 1 where the error is the outcome asked for (a release refused), 2 where nothing could be done."""
    return FAILED if isinstance(error, ReleaseError) or error.code in _REFUSALS else UNUSABLE


def fail(message: str) -> None:
    """Write ``message`` as one line on stderr."""
    stderr().print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)


def note(message: str) -> None:
    """Write a line for people on stderr, out of the way of what a program reads on stdout."""
    stderr().print(escape(message), style="dim", soft_wrap=True)


def stderr() -> Console:
    """Return a console on stderr as it is now: tests replace it."""
    return Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Write ``value`` as JSON on stdout; two-space indent, keys in their own order."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: "Iterable[Sequence[object]]", *, empty: str) -> None:
    """Write a table on stdout, or the sentence ``empty`` where there are no rows; None shows as a dash."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("-" if cell is None or cell == "" else escape(str(cell)) for cell in row))
    # A file or a pipe has no width: lines are for tools there, and must not be folded at 80.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 400)
    if table.row_count:
        console.print(table)
    else:
        stderr().print(escape(empty))


def short(digest: str | None) -> str | None:
    """Return the first 12 digits of a digest: enough to tell versions apart by eye."""
    return digest[:12] if digest else None


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on stderr while the block runs; nothing where ``quiet`` or where no terminal is."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda _step, _fraction: None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda step, fraction: bars.update(task, description=escape(step), completed=fraction)
