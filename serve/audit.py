"""The audit of weight changes: one JSON object a line, appended, never rewritten. No client data in it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.rollout.messages import Target

NOTHING: Final = MappingProxyType[str, float]({})


class Audit:
    """Writes ``rollout.jsonl`` in its folder, readable by this user only."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime] | None = None) -> None:
        """Keep the folder; it is made at the first line. now: returns the time in UTC."""
        self._path = folder / "rollout.jsonl"
        self._now = now or (lambda: datetime.now(UTC))

    def line(
        self,
        model: str,
        action: str,
        before: Target | None,
        after: Target | None,
        *,
        result: str,
        reason: str,
        who: str,
        generation: int,
        measured: Mapping[str, float] = NOTHING,
    ) -> str:
        """Return one entry as JSON. generation: 0 where the entry is about none. measured: the numbers behind it."""
        entry = {
            "time": self._now().isoformat(timespec="milliseconds"),
            "who": who,
            "action": action,
            "model": model,
            "from": _name(before),
            "to": _name(after),
            "generation": generation or None,
            "reason": reason,
            "result": result,
            "measured": dict(measured),
        }
        return json.dumps(entry, sort_keys=False)

    def append(self, line: str) -> None:
        """Append one entry; blocks. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(f"{line}\n".encode())


def _name(target: Target | None) -> dict[str, str] | None:
    return None if target is None else {"version": target.version, "digest": target.digest}
