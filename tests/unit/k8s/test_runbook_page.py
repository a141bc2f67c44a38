"""``k8s/RUNBOOK.md``: a part for each alert, and each block of commands is run by a test or says what it needs."""

from __future__ import annotations

import re

import yaml
from checks.alerts import alerts_in
from k8s_folder import K8S

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = ("# Needs a cluster.", "# Needs Docker.")
_AWAY = re.compile(r"^\s*(kubectl|docker|helm)\b", re.MULTILINE)


def _parts(page: str) -> dict[str, str]:
    found = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_each_alert_has_a_part_with_commands_and_no_part_is_left_over() -> None:
    """A part says what the alert means before its steps, and has a block that can be run here or says why not."""
    alerts = {each["alert"] for each in alerts_in(yaml.safe_load((K8S / "monitoring/alerts.yaml").read_text("utf-8")))}
    parts = _parts((K8S / "RUNBOOK.md").read_text(encoding="utf-8"))
    assert {name for name in parts if name.startswith("Steelyard")} == alerts
    for name in alerts:
        assert parts[name].strip().partition("\n\n1. ")[0], name
        assert _BLOCK.search(parts[name]), name


def test_commands_that_are_not_run_say_what_they_need() -> None:
    """Only a cluster and Docker are away, and no block that is run asks for either."""
    blocks = _BLOCK.findall((K8S / "RUNBOOK.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"sh"}
    for _, text in blocks:
        first = text.splitlines()[0]
        assert (first in NEEDS) == bool(_AWAY.search(text)), text


def test_links_lead_somewhere() -> None:
    """Within the page, and from each alert to its part."""
    page = (K8S / "RUNBOOK.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= anchors
