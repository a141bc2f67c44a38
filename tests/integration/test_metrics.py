"""One scrape of ``/metrics`` after 100 requests over two versions, against the table of ``docs/metrics.md``."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import free_port, start, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `ray_(steelyard_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
OF_RAY = {
    "replica", "SessionName", "NodeAddress", "WorkerId", "Component", "Version",
    "otel_scope_name", "otel_scope_version", "otel_scope_schema_url",
}  # fmt: skip
"""Labels that every series may have beside those of the table."""
REPORTED_WITHIN_S = 60.0
"""Ray's agent exports what a process counted some seconds later; more on a busy machine."""
FOLLOWED_FOR_S = 3.0
"""Replicas look at the access file once a second, each at its own time."""
TRACES = util.find_spec("opentelemetry.exporter.otlp") is not None
"""Whether the exporter of traces is installed, without which its metric is not there."""
MOST_SERIES = 1200
"""Of this service: two replicas, a model of few classes, two versions."""


@dataclass(frozen=True)
class Scraped:
    """What the service answered: statuses by version, and the families of the scrape by name."""

    answers: Counter[str]
    families: dict[str, Any]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        samples = self.families[re.sub("_(total|count|sum|bucket)$", "", name)].samples
        return float(sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items()))


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Return the scrape of a service with keys after 50 requests to each of two versions and some bad ones."""
    folder = tmp_path_factory.mktemp("metrics")
    begin = partial(start, folder / "home", folder / "serve.log", "--replicas", "2", STEELYARD_POLL_INTERVAL_S="0.5")
    # Nobody collects there, which is counted.
    service = begin(STEELYARD_TRACE_ENDPOINT=f"http://127.0.0.1:{free_port()}/v1/traces") if TRACES else begin()
    try:
        yield _scrape(service)
    finally:
        stop(service)


def _scrape(service: Service) -> Scraped:
    keys = {}
    for name, given in {
        "till": ("--scope", "predict", "--rate", "1000"),
        "operator": ("--scope", "admin"),
        "prometheus": ("--scope", "metrics"),
    }.items():
        made = service.cli("access", "add", name, *given, "--json")
        assert made.returncode == 0, made.stderr
        keys[name] = {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}
    answers: Counter[str] = Counter()
    with httpx.Client(base_url=service.url, timeout=60) as client:
        _wait_for_keys(client, keys)
        for version in ("1", "2"):
            _bring(client, keys["operator"], version)
            for _ in range(50):
                answer = _post(client, keys["till"], service.tray)
                assert answer.status_code == 200, answer.text
                answers[answer.json()["metadata"]["version"]] += 1
        for body in (b"no image", b"GIF89a" + bytes(64)):
            assert _post(client, keys["till"], body).status_code in {400, 415, 422}
        found = Scraped(answers, {})
        deadline = time.monotonic() + REPORTED_WITHIN_S
        while time.monotonic() < deadline:
            text = client.get("/metrics", headers=keys["prometheus"])
            assert text.status_code == 200, text.text
            found = Scraped(answers, {each.name: each for each in text_string_to_metric_families(text.text)})
            if "ray_steelyard_answers" in found.families and found.value("ray_steelyard_answers_total") >= 100:
                break
            time.sleep(1.0)  # the service under test lives in real time
        return found


def _post(client: httpx.Client, key: dict[str, str], body: bytes) -> httpx.Response:
    return client.post("/v1/detect", content=body, headers={**key, "Content-Type": "image/jpeg"})


def _wait_for_keys(client: httpx.Client, keys: dict[str, dict[str, str]]) -> None:
    """Wait until every key opens, and nothing opens without, for longer than replicas take to follow the file."""
    deadline, since = time.monotonic() + 40.0, time.monotonic()
    wanted = [("/v1/models", keys["till"], 200), ("/v1/models", keys["operator"], 200)]
    wanted += [("/metrics", keys["prometheus"], 200), ("/v1/models", {}, 401)]
    while time.monotonic() < deadline:
        if any(client.get(path, headers=key).status_code != status for path, key, status in wanted):
            since = time.monotonic()
        if time.monotonic() - since > FOLLOWED_FOR_S:
            return
        time.sleep(0.05)  # replicas follow the access file in real time
    pytest.fail("the keys are not in force")


def _bring(client: httpx.Client, key: dict[str, str], version: str) -> None:
    deadline = time.monotonic() + 120.0
    asked = False
    while time.monotonic() < deadline:
        rollout = client.get("/v1/models/checkout/rollout", headers=key).json()
        if rollout["serving"] == version and all(each["version"] == version for each in rollout["replicas"]):
            return
        if not asked:
            asked = client.post("/v1/models/checkout/promote", json={"version": version}, headers=key).is_success
        time.sleep(0.2)  # likewise
    pytest.fail(f"version {version} does not serve")


def _documented() -> dict[str, tuple[str, set[str]]]:
    rows = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    found = {f"ray_{name}": (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    if not TRACES:
        del found["ray_steelyard_spans_total"]
    return found


def test_the_page_has_every_metric_of_the_scrape_and_the_scrape_every_one_of_the_page(scraped: Scraped) -> None:
    """By name, type and labels. Prometheus' parser took the whole of it."""
    assert scraped.answers == {"1": 50, "2": 50}
    found = {
        f"{name}_total" if family.type == "counter" else name: family
        for name, family in scraped.families.items()
        if "steelyard" in name
    }
    documented = _documented()
    assert found.keys() == documented.keys()
    for name, family in found.items():
        kind, labels = documented[name]
        assert family.type == kind, name
        seen = {label for sample in family.samples for label in sample.labels} - OF_RAY - {"le"}
        assert seen == labels - {"le"}, name
        assert family.documentation, name


def test_both_versions_are_told_apart(scraped: Scraped) -> None:
    """Rate, latency by stage, and what each has seen; a bad image is counted by its reason."""
    for version in ("1", "2"):
        assert scraped.value("ray_steelyard_answers_total", version=version) == 50
        assert scraped.value("ray_steelyard_sight_answers_total", version=version) == 50
        assert scraped.value("ray_steelyard_stage_seconds_count", version=version, stage="infer") >= 10
        boxes = scraped.value("ray_steelyard_sight_boxes_total", version=version)
        assert boxes == scraped.value("ray_steelyard_boxes_total", version=version) > 0
        assert boxes == scraped.value("ray_steelyard_sight_scores_total", version=version, le="+Inf")
    bad = [scraped.value("ray_steelyard_images_total", outcome=each) for each in ("invalid_image", "unsupported_image")]
    assert sum(bad) == 2
    assert (
        scraped.value("ray_steelyard_rollout_state", state="serving")
        + scraped.value("ray_steelyard_rollout_state", state="probation")
        == 1
    )


def test_what_did_not_happen_is_there_as_nothing(scraped: Scraped) -> None:
    """Alerts on a first event need the series before it."""
    assert scraped.value("ray_steelyard_batch_failures_total") == 0
    assert scraped.value("ray_steelyard_rollout_runs_total", outcome="lost") == 0
    outcomes = {each.labels["outcome"] for each in scraped.families["ray_steelyard_images"].samples}
    assert {"overloaded", "deadline_exceeded", "image_too_large"} <= outcomes


def test_the_series_are_few(scraped: Scraped) -> None:
    """No label grows with requests or clients."""
    ours = [sample for name, each in scraped.families.items() if "steelyard" in name for sample in each.samples]
    assert len(ours) < MOST_SERIES
