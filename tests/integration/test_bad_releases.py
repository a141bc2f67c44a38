"""Releases that may not serve are refused, and people hear why; the faults of their content are in tests/faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from clients import Clients
from planting import MODEL, copy_of, edit_weights, move_alias, plant, registry_client
from running import audit

from models.weights import registry as tags

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service


def test_a_version_without_its_ready_tag_is_not_served(service: Service, tmp_path: Path) -> None:
    """For the fleet it does not exist: nothing was tried, so there is nothing to write down."""
    service.settle("1")
    before = service.rollout()
    planted = copy_of(service, "1", tmp_path, 3.0)
    registry_client(service).delete_model_version_tag(MODEL, planted.version, tags.STATE_TAG)
    with Clients(service.url, service.tray, count=2) as load:
        move_alias(service, planted.version)
        rollout = service.wait_until(lambda r: r["state"] == "rejected")
        load.wait_for(before["generation"])
    assert rollout["step"] == "fetch"
    assert "ready" in rollout["reason"]
    assert {(e.status, e.version) for e in load.exchanges} == {(200, "1")}
    assert not [r for r in audit(service) if r["result"] == "rejected" and r["to"]["version"] == planted.version]


def test_promoting_a_bad_release_fails_with_its_reason(service: Service, tmp_path: Path) -> None:
    """``steelyard promote`` of a blind version ends with exit code 1 and says why on standard error."""
    service.settle("1")
    service.registry().fetch(MODEL, "2", tmp_path)
    edit_weights(tmp_path, np.zeros_like, last=24)
    planted = plant(service, tmp_path, metrics={"planted": 4.0})
    promoted = service.cli("promote", MODEL, planted.version)
    assert promoted.returncode == 1
    assert "golden" in promoted.stderr
    assert service.detect()["metadata"]["version"] == "1"
    service.settle("1")
