"""``docs/metrics.md`` against the sources: every metric stands there with its type and labels, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
_ROW = re.compile(r"^\| `ray_(steelyard_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


def _made() -> dict[str, tuple[str, frozenset[str]]]:
    """Return type and labels of each ``Metric(...)`` in the sources, by name."""
    found = {}
    for path in sorted((ROOT / "serve").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Metric":
                name, labels = ast.literal_eval(node.args[0]), ast.literal_eval(node.args[2])
                kind = "histogram" if len(node.args) > 3 else "counter" if name.endswith("_total") else "gauge"
                found[name] = kind, frozenset(labels)
    return found


def test_the_page_names_every_metric_of_the_sources_and_no_other() -> None:
    """With the type and labels that it has."""
    rows = _ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == _made()
