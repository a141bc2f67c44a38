"""Dashboards and alerts ask only for metrics that ``docs/metrics.md`` has, and the dashboards' files are as made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from checks.alerts import alerts_in
from checks.findings import find_tool
from k8s_folder import K8S, ROOT

sys.path.insert(0, str(K8S / "monitoring"))

import dashboards

if TYPE_CHECKING:
    from pathlib import Path

_ROW = re.compile(r"^\| `(ray_steelyard_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
_NAME = re.compile(r"\bray_\w+")
OF_PROMETHEUS = {"le", "job", "instance", "ray_io_cluster", "replica"}
"""Labels that a query may use beside those of the table."""


def _series() -> dict[str, set[str]]:
    """Return the labels of each series that the page promises, by name; a histogram has three."""
    found = {}
    for name, kind, labels in _ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")):
        endings = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found.update({f"{name}{ending}": set(re.findall(r"`(\w+)`", labels)) for ending in endings})
    return found


def _queries() -> list[tuple[str, str]]:
    """Return (where it stands, PromQL) of every alert, panel and annotation."""
    rules = yaml.safe_load((K8S / "monitoring/alerts.yaml").read_text(encoding="utf-8"))
    found = [(each["alert"], each["expr"]) for each in alerts_in(rules)]
    for path in sorted((K8S / "monitoring/grafana/dashboards").glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        found += [(path.stem, each["expr"]) for each in board["annotations"]["list"]]
        found += [(each["title"], target["expr"]) for each in board["panels"] for target in each["targets"]]
    return found


def test_every_query_asks_for_a_documented_metric_by_its_labels() -> None:
    """A metric that was renamed leaves neither an empty panel nor an alert that never fires."""
    series = _series()
    for where, query in _queries():
        names = set(_NAME.findall(query)) - OF_PROMETHEUS
        assert names or "up{" in query, where
        assert names <= series.keys(), where
        known = OF_PROMETHEUS.union(*(series[name] for name in names))
        used = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
        for group in re.findall(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)", query):
            used += [label.strip() for label in group.split(",")]
        assert set(used) <= known, where


def test_every_metric_of_saturation_and_sight_is_on_a_dashboard() -> None:
    """What nobody sees need not be counted: of the four signals, nothing is left out."""
    shown = {name for _, query in _queries() for name in _NAME.findall(query)}
    assert {
        "ray_steelyard_queued_images",
        "ray_steelyard_lane_seconds_total",
        "ray_steelyard_batch_images_bucket",
        "ray_steelyard_stage_seconds_bucket",
        "ray_steelyard_images_total",
        "ray_steelyard_hold_seconds_bucket",
        "ray_steelyard_rollout_state",
        "ray_steelyard_registry_age_seconds",
        "ray_steelyard_sight_empty_total",
        "ray_steelyard_sight_scores_total",
        "ray_steelyard_sight_boxes_total",
    } <= shown


def test_the_files_are_what_the_script_writes() -> None:
    """``python k8s/monitoring/dashboards.py`` after a change; Grafana finds each by an identity of its own."""
    folder = K8S / "monitoring/grafana/dashboards"
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")} == dashboards.written()


def test_promtool_understands_every_query(tmp_path: Path) -> None:
    """As recording rules, with Grafana's own variable filled in."""
    promtool = find_tool("promtool")
    if promtool is None:
        pytest.skip("there is no promtool here (Debian's package prometheus)")
    rules = [
        {"record": f"query_{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, (_, query) in enumerate(_queries())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
