"""Alert rules: promtool checks and tests them, and the Prometheus operator's copy says the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import yaml

from checks.findings import Findings, find_tool, judge_tool

if TYPE_CHECKING:
    from pathlib import Path

RULES: Final = "monitoring/alerts.yaml"
TESTS: Final = ("monitoring/alerts_test.yaml", "monitoring/alerts_day_test.yaml")
COPY: Final = "components/prometheus/alerts.yaml"
CONFIG: Final = "monitoring/prometheus.yaml"
RUNBOOK: Final = "RUNBOOK.md"
_HEADER: Final = "# Made of monitoring/alerts.yaml by `python k8s/check.py --write`; change that one.\n"


class _Plain(yaml.SafeDumper):
    """Writes lists below their keys indented, and long expressions as they are."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def rule_manifest(rules: str) -> str:
    """Return the PrometheusRule that holds ``rules``, the text of a Prometheus rule file."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "steelyard",
            "namespace": "steelyard",
            "labels": {"app.kubernetes.io/name": "steelyard"},
        },
        "spec": yaml.safe_load(rules),
    }
    return _HEADER + yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=110)


def alerts_in(rules: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alerts of a parsed rule file."""
    return [rule for group in rules.get("groups", ()) for rule in group.get("rules", ()) if "alert" in rule]


def anchors_in(page: str) -> set[str]:
    """Return the anchors of a Markdown page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def check_alerts(folder: Path) -> Findings:
    """Return what is wrong with the rules, their tests, their copy and Prometheus' configuration below ``folder``."""
    found = Findings([f"{name} is missing" for name in (RULES, *TESTS, COPY, CONFIG) if not (folder / name).is_file()])
    if found.errors:
        return found
    text = (folder / RULES).read_text(encoding="utf-8")
    found.errors += _rule_problems(folder, alerts_in(yaml.safe_load(text)))
    if yaml.safe_load((folder / COPY).read_text(encoding="utf-8")) != yaml.safe_load(rule_manifest(text)):
        found.errors.append(f"{COPY} is not what {RULES} says: python k8s/check.py --write")
    promtool = find_tool("promtool")
    if promtool is None:
        found.skipped.append("alert rules were not tested: there is no promtool here (Debian's package prometheus)")
        return found
    found.add(judge_tool([promtool, "check", "rules", str(folder / RULES)], RULES))
    for tests in TESTS:
        found.add(judge_tool([promtool, "test", "rules", str(folder / tests)], tests))
    found.add(judge_tool([promtool, "check", "config", "--syntax-only", str(folder / CONFIG)], CONFIG))
    return found


def _rule_problems(folder: Path, alerts: list[dict[str, Any]]) -> list[str]:
    problems = []
    stories = [test for name in TESTS for test in yaml.safe_load((folder / name).read_text("utf-8"))["tests"]]
    fires: set[str] = set()
    quiet: set[str] = set()
    for test in stories:
        for case in test.get("alert_rule_test", ()):
            (fires if case.get("exp_alerts") else quiet).add(case["alertname"])
    runbook = folder / RUNBOOK
    anchors = anchors_in(runbook.read_text(encoding="utf-8")) if runbook.is_file() else None
    for alert in alerts:
        name = alert["alert"]
        if name not in fires or name not in quiet:
            problems.append(f"{TESTS[0]}: {name} needs a moment at which it fires and one at which it does not")
        if alert.get("labels", {}).get("severity") not in ("critical", "warning", "info"):
            problems.append(f"{RULES}: {name} has no severity: critical, warning or info")
        missing = {"summary", "description", "runbook"} - alert.get("annotations", {}).keys()
        problems += [f"{RULES}: {name} has no annotation {each}" for each in sorted(missing)]
        if anchors is not None and name.lower() not in anchors:
            problems.append(f"{RUNBOOK} has no part named {name}")
    return problems
