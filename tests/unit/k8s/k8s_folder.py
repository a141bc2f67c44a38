"""The folder under test, and one way to break a file of a copy."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
K8S = ROOT / "k8s"


def replace(file: Path, old: str, new: str) -> None:
    """Change ``old``, which must stand in ``file`` once or more, to ``new``."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file.name} does not hold {old!r}"
    file.write_text(text.replace(old, new), encoding="utf-8")
