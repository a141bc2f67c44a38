"""Takes the registry of a running service away, and gives it back."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from serve.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

PAGE = 4096
SQLITE = "sqlite:///"


@contextlib.contextmanager
def registry_down(service: Service) -> Iterator[None]:
    """Make every call of the registry fail inside the block, by a first page that is no database's."""
    path = Path(load_settings(home=service.home).tracking_uri.removeprefix(SQLITE))
    lock = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    lock.execute("BEGIN EXCLUSIVE")  # nobody may be half-way through a write
    with path.open("r+b") as file:
        page = file.read(PAGE)
        file.seek(0)
        file.write(b"the registry is down ".ljust(PAGE, b"."))
    lock.close()
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.write(page)
