"""The audit of weight changes: one JSON object a line, appended, never rewritten. No client data in it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.rollout.messages import Target

NOTHING: Final = MappingProxyType[str, float]({})


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. at: UTC. generation: 0 where it is about none. measured: name -> number, what the result rests on."""

    at: datetime
    who: str
    action: str
    model: str
    before: Target | None
    after: Target | None
    generation: int
    reason: str
    result: str
    measured: Mapping[str, float]

    def line(self) -> str:
        """Return the entry as one JSON object without a line break."""
        entry = {
            "time": self.at.isoformat(timespec="milliseconds"),
            "who": self.who,
            "action": self.action,
            "model": self.model,
            "from": _name(self.before),
            "to": _name(self.after),
            "generation": self.generation or None,
            "reason": self.reason,
            "result": self.result,
            "measured": dict(self.measured),
        }
        return json.dumps(entry, sort_keys=False)


class Audit:
    """Writes ``rollout.jsonl`` in its folder, readable by this user only."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime] | None = None) -> None:
        """Keep the folder; it is made at the first line. now: returns the time in UTC."""
        self._path = folder / "rollout.jsonl"
        self._now = now or (lambda: datetime.now(UTC))

    def entry(
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
    ) -> Entry:
        """Return an entry of now; nothing is written yet."""
        return Entry(self._now(), who, action, model, before, after, generation, reason, result, measured)

    def line(self, model: str, action: str, before: Target | None, after: Target | None, **rest: Any) -> str:
        """Return an entry of now as JSON; ``rest`` as ``entry`` takes it."""
        return self.entry(model, action, before, after, **rest).line()

    def append(self, line: str) -> None:
        """Append one entry; blocks. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(f"{line}\n".encode())


def _name(target: Target | None) -> dict[str, str] | None:
    return None if target is None else {"version": target.version, "digest": target.digest}
