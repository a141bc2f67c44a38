"""The audit file: append only, private, one JSON object a line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from models.rollout.messages import Target
from serve.audit import Audit

if TYPE_CHECKING:
    from pathlib import Path


def test_lines_are_complete_appended_and_private(tmp_path: Path) -> None:
    """Who, what, from, to, why, result and when; readable by the owner only."""
    audit = Audit(tmp_path / "audit", now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    target = Target("2", "d2", "p2")
    first = audit.line("m", "promote", None, target, result="accepted", reason="try", who="operator", generation=0)
    second = audit.line(
        "m", "roll", target, target, result="canary", reason="", who="rollout", generation=7, measured={"images": 9.0}
    )
    for line in (first, second):
        audit.append(line)
    path = tmp_path / "audit" / "rollout.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert entries[0] == {
        "time": "2026-01-02T03:04:05.000+00:00",
        "who": "operator",
        "action": "promote",
        "model": "m",
        "from": None,
        "to": {"version": "2", "digest": "d2"},
        "generation": None,
        "reason": "try",
        "result": "accepted",
        "measured": {},
    }
    assert (entries[1]["generation"], entries[1]["from"]["version"], entries[1]["measured"]) == (
        7,
        "2",
        {"images": 9.0},
    )
    assert path.stat().st_mode & 0o777 == 0o600
