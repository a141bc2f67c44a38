"""What a build sees: the files that COPY names, less those that the ignore file keeps away."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


def is_ignored(path: str, rules: Sequence[str]) -> bool:
    """Return whether Docker's builder leaves out ``path``, relative to the context, by the lines of its ignore file.

    The last rule that matches decides; one for a folder holds for all below it. Source: Docker's documentation of
    ``.dockerignore``.
    """
    ignored = False
    parts = path.split("/")
    for rule in rules:
        pattern = _pattern(rule.lstrip("!").strip("/"))
        if any(pattern.fullmatch("/".join(parts[:length])) for length in range(1, len(parts) + 1)):
            ignored = not rule.startswith("!")
    return ignored


def read_rules(text: str) -> list[str]:
    """Return the rules of an ignore file, comments and empty lines left out."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def copy_context(root: Path, names: Iterable[str], rules: Sequence[str], target: Path) -> int:
    """Copy the files and folders ``names`` of ``root`` to ``target`` as a build gets them; return how many files."""
    count = 0
    for name in names:
        top = root / name
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            path = file.relative_to(root).as_posix()
            if file.is_file() and not is_ignored(path, rules):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / path)
                count += 1
    return count


def _pattern(rule: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    split = re.split(r"(\*\*/|\*\*|\*|\?)", rule)
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in split))
