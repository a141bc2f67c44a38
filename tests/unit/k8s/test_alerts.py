"""Alert rules: tested by promtool, each with a story, on metrics that there are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml
from checks import alerts, findings
from k8s_folder import K8S, ROOT, replace

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [each["alert"] for each in alerts.alerts_in(yaml.safe_load((K8S / alerts.RULES).read_text(encoding="utf-8")))]


@pytest.fixture(name="promtool")
def _promtool() -> str:
    """Return promtool's path, or skip without it."""
    found = findings.find_tool("promtool")
    if found is None:
        pytest.skip("there is no promtool here; Debian's package prometheus has it")
    return found


def test_own_rules_are_sound() -> None:
    """Nothing is wrong with the rules, their tests and Prometheus' configuration."""
    assert alerts.check_alerts(K8S).errors == []


@pytest.mark.usefixtures("promtool")
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("monitoring/alerts.yaml", "absent(", "absent(("),
        ("monitoring/alerts.yaml", "> 300", "> 3000"),
        ("monitoring/alerts.yaml", 'outcome="overloaded"', 'outcome="shed"'),
        ("monitoring/alerts.yaml", "humanizePercentage", "humanisePercentage"),
        ("monitoring/prometheus.yaml", "scrape_interval: 15s", "scrape_intervall: 15s"),
    ],
)
def test_what_promtool_refuses_is_an_error(folder: Path, file: str, old: str, new: str) -> None:
    """An expression that does not parse, one that no longer fires, a label nobody sets, a template, a typing error."""
    replace(folder / file, old, new)

    assert [error for error in alerts.check_alerts(folder).errors if error.startswith(file.partition("/")[0])]


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_depends_on_its_threshold(alert: str, folder: Path, promtool: str) -> None:
    """The story of an alert fails where the alert can never fire: no test passes whatever the rule says."""
    rules = yaml.safe_load((folder / alerts.RULES).read_text(encoding="utf-8"))
    rule = next(each for each in alerts.alerts_in(rules) if each["alert"] == alert)
    rule["expr"] = f"({rule['expr']}) and on () vector(0) > 1"
    (folder / alerts.RULES).write_text(yaml.safe_dump(rules), encoding="utf-8")

    told = [findings.run_tool([promtool, "test", "rules", str(folder / tests)]) for tests in alerts.TESTS]

    assert any(code != 0 and alert in out + err for code, out, err in told)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("monitoring/alerts_test.yaml", "alertname: SteelyardSlow", "alertname: SteelyardSlows", "SteelyardSlow needs"),
        ("monitoring/alerts.yaml", "severity: critical", "severity: bad", "severity"),
        ("monitoring/alerts.yaml", "          runbook:", "          page:", "annotation runbook"),
    ],
)
def test_alert_without_test_severity_or_runbook_is_an_error(
    folder: Path, file: str, old: str, new: str, words: str
) -> None:
    """Whoever is woken by an alert finds out how bad it is and what to do, and the alert was seen to fire."""
    replace(folder / file, old, new)

    assert any(words in error for error in alerts.check_alerts(folder).errors)


def test_every_alert_has_its_part_of_the_runbook(folder: Path) -> None:
    """Where there is a runbook, each alert is a heading of it."""
    page = folder / alerts.RUNBOOK
    page.write_text("# Runbook\n" + "".join(f"\n## {name}\n" for name in NAMES[1:]), encoding="utf-8")

    assert [error for error in alerts.check_alerts(folder).errors if "RUNBOOK" in error] == [
        f"RUNBOOK.md has no part named {NAMES[0]}"
    ]


def test_rules_name_metrics_that_exist() -> None:
    """Each name is one of the service's metrics, in the form that Ray gives it."""
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "serve").glob("*.py"))
    known = set(re.findall(r'"(steelyard_\w+)"', sources))
    shown = known | {f"{name}_bucket" for name in known}
    used = set(re.findall(r"ray_(steelyard_\w+)", (K8S / alerts.RULES).read_text(encoding="utf-8")))

    assert used
    assert used <= shown
