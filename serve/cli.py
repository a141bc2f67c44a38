"""Entry point of the ``steelyard`` command.

Nothing but ``sys`` is imported, and no syntax newer than Python 3.8 stands here, before the interpreter is known to
be new enough: an old one gets one clear line, not a SyntaxError out of a dependency.
"""

from __future__ import annotations

import sys

OLDEST_PYTHON = (3, 11)


def wrong_python(version: tuple[int, ...]) -> str | None:
    """Return the line to print when ``version`` (major, minor, ...) of Python is too old, else None."""
    if version[:2] >= OLDEST_PYTHON:
        return None
    found, needed = (".".join(str(part) for part in parts[:2]) for parts in (version, OLDEST_PYTHON))
    return f"error: steelyard needs Python {needed} or newer and runs on {found}; install a newer one and try again"


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 refused or failed, 2 could not be tried."""
    refusal = wrong_python(tuple(sys.version_info[:3]))
    if refusal is not None:
        sys.stderr.write(refusal + "\n")
        raise SystemExit(2)
    from serve.commands.application import app

    app()


if __name__ == "__main__":
    main()
