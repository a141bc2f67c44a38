"""Writes Grafana's dashboards, ``grafana/dashboards/*.json``: ``python k8s/monitoring/dashboards.py``.

A row of the tables below is a panel. Names of metrics are those of ``docs/metrics.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "grafana" / "dashboards"
SOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
ALL: Final = 'job="steelyard"'
COLUMNS: Final = 3
WIDTH: Final = 24 // COLUMNS
HEIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph over time. unit: as Grafana names it. queries: legend -> PromQL, where ``$all`` selects the service."""

    title: str
    unit: str
    queries: dict[str, str]
    stacked: bool = False


def rate(metric: str, by: str, more: str = "") -> str:
    """Return the rate of a counter a second, summed by labels; ``more``: further selectors."""
    return f"sum by ({by}) (rate(ray_steelyard_{metric}{{$all{more}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str, more: str = "") -> str:
    """Return a quantile of a histogram by labels."""
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', f'{by}, le', more)})"


def share_of_requests(status: str) -> str:
    """Return the share of HTTP requests answered with a status that matches."""
    requests = "rate(ray_steelyard_http_requests_total{$all%s}[$__rate_interval])"
    return f"(sum({requests % f', status=~`{status}`'}) or vector(0)) / sum({requests % ''})"


def mix(window: str, by: str) -> str:
    """Return the share of each class among the boxes, by labels; ``window``: of time, with an offset where wanted."""
    boxes = f"rate(ray_steelyard_sight_boxes_total{{$all}}{window})"
    return f"sum by ({by}, class) ({boxes}) / ignoring(class) group_left sum by ({by}) ({boxes})"


DETECTION: Final = ', route=~"/v1/detect.*|/v1/models/.*/detect|/v2/.*/infer"'
OVERVIEW: Final = (
    Panel(
        "Images answered a second, by version",
        "ops",
        {"{{model}} {{version}}": rate("answers_total", "model, version")},
    ),
    Panel(
        "Images not answered a second, by reason",
        "ops",
        {"{{model}} {{outcome}}": rate("images_total", "model, outcome", ', outcome!="ok"') + " > 0"},
    ),
    Panel(
        "Share of requests by status",
        "percentunit",
        {"5xx": share_of_requests("5.."), "429": share_of_requests("429")},
    ),
    Panel(
        "Time to answer a detection",
        "s",
        {
            "50 %": quantile(0.5, "http_request_seconds", "job", DETECTION),
            "99 %": quantile(0.99, "http_request_seconds", "job", DETECTION),
        },
    ),
    Panel(
        "Median time by stage and version",
        "s",
        {"{{version}} {{stage}}": quantile(0.5, "stage_seconds", "model, version, stage")},
    ),
    Panel("99th percentile by stage", "s", {"{{model}} {{stage}}": quantile(0.99, "stage_seconds", "model, stage")}),
    Panel("Images that wait", "short", {"{{model}}": "sum by (model) (ray_steelyard_queued_images{$all})"}),
    Panel(
        "Lanes in use",
        "percentunit",
        {"{{model}}": f"{rate('lane_seconds_total', 'model')} / sum by (model) (ray_steelyard_lanes{{$all}})"},
    ),
    Panel(
        "Images a batch, 99th percentile",
        "short",
        {"{{model}}": quantile(0.99, "batch_images", "model")},
    ),
    Panel(
        "Batches that failed a second", "ops", {"{{model}} {{version}}": rate("batch_failures_total", "model, version")}
    ),
    Panel(
        "Requests inside", "short", {"{{replica}}": "sum by (replica) (ray_steelyard_http_requests_in_flight{$all})"}
    ),
    Panel(
        "Requests of limited keys a second",
        "ops",
        {"{{key}} {{outcome}}": rate("quota_requests_total", "key, outcome")},
    ),
)
ROLLOUT: Final = (
    Panel(
        "Replicas by the version that they serve",
        "short",
        {"{{model}} {{version}}": "sum by (model, version) (ray_steelyard_serving{$all})"},
        stacked=True,
    ),
    Panel(
        "State of the rollout",
        "short",
        {"{{model}} {{state}}": "max by (model, state) (ray_steelyard_rollout_state{$all}) > 0"},
    ),
    Panel(
        "Generations, newest and oldest",
        "short",
        {
            "{{model}} newest": "max by (model) (ray_steelyard_generation{$all})",
            "{{model}} oldest": "min by (model) (ray_steelyard_generation{$all})",
        },
    ),
    Panel(
        "Finished rollouts in an hour, by result",
        "short",
        {"{{model}} {{result}}": "sum by (model, result) (increase(ray_steelyard_rollouts_total{$all}[1h]))"},
    ),
    Panel(
        "Time of a rollout, median",
        "s",
        {"{{model}} {{result}}": quantile(0.5, "rollout_seconds", "model, result")},
    ),
    Panel("Time to load a release, 99th percentile", "s", {"{{model}}": quantile(0.99, "prepare_seconds", "model")}),
    Panel(
        "Time that a swap held batches, 99th percentile", "s", {"{{model}}": quantile(0.99, "hold_seconds", "model")}
    ),
    Panel(
        "Age of what the registry said", "s", {"{{model}}": "max by (model) (ray_steelyard_registry_age_seconds{$all})"}
    ),
    Panel(
        "Readings of the registry that failed a second",
        "ops",
        {"{{model}}": rate("registry_read_failures_total", "model")},
    ),
)
BOXES_AN_IMAGE: Final = f"{rate('boxes_total', 'model, version')} / {rate('answers_total', 'model, version')}"
EMPTY_SHARE: Final = f"{rate('sight_empty_total', 'model, version')} / {rate('sight_answers_total', 'model, version')}"
SIGHT: Final = (
    Panel(
        "Boxes an image, by version",
        "short",
        {"{{model}} {{version}}": BOXES_AN_IMAGE},
    ),
    Panel("Answers without a box", "percentunit", {"{{model}} {{version}}": EMPTY_SHARE}),
    Panel(
        "Median score of boxes",
        "percentunit",
        {"{{model}} {{version}}": f"histogram_quantile(0.5, {rate('sight_scores_total', 'model, version, le')})"},
    ),
    Panel(
        "Score that nine boxes of ten exceed",
        "percentunit",
        {"{{model}} {{version}}": f"histogram_quantile(0.1, {rate('sight_scores_total', 'model, version, le')})"},
    ),
    Panel(
        "Mix of classes, the twelve most frequent",
        "percentunit",
        {"{{version}} class {{class}}": f"topk(12, {mix('[$__rate_interval]', 'model, version')})"},
        stacked=True,
    ),
    Panel(
        "Largest shift of a class's share against a day ago",
        "percentunit",
        {"{{model}}": f"max by (model) (abs({mix('[1h]', 'model')} - {mix('[1h] offset 1d', 'model')}))"},
    ),
)
BOARDS: Final = {
    "steelyard": ("Steelyard", OVERVIEW),
    "steelyard-rollout": ("Steelyard: rollout", ROLLOUT),
    "steelyard-sight": ("Steelyard: sight", SIGHT),
}
"""File name and identity -> title and panels."""


def expression(query: str) -> str:
    """Return the PromQL of a query of the tables."""
    return query.replace("$all", ALL).replace("`", '"')


def board(uid: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Return a dashboard in Grafana's format."""
    return {
        "uid": uid,
        "title": title,
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "tags": ["steelyard"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "15s",
        "timezone": "",
        "templating": {"list": []},
        "annotations": {
            "list": [
                {
                    "name": "Changes of version",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "orange",
                    "expr": f"max by (model) (changes(ray_steelyard_generation{{{ALL}}}[1m])) > 0",
                    "titleFormat": "{{model}}: another version serves",
                }
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal", "group": "A"}} if panel.stacked else {"fillOpacity": 5}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": WIDTH * (number % COLUMNS), "y": HEIGHT * (number // COLUMNS)},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": [
            {"refId": chr(ord("A") + each), "expr": expression(query), "legendFormat": legend}
            for each, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def written() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {
        f"{uid}.json": json.dumps(board(uid, title, panels), indent=2) + "\n" for uid, (title, panels) in BOARDS.items()
    }


if __name__ == "__main__":
    for name, text in written().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
