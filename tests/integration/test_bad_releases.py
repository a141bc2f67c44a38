"""Releases that may not serve are refused, and people hear why; the faults of their content are in tests/faults."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from clients import Clients
from planting import MODEL, copy_of, edit_weights, move_alias, plant, registry_client
from running import audit

from models.weights import registry as tags
from models.weights.keys import KeyFolder

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


def test_signatures_are_checked_by_the_running_service_from_the_first_trusted_key_on(
    service: Service, tmp_path: Path
) -> None:
    """A moved one is refused and named, a right one serves and is told of, and no restart is needed for either."""
    service.settle("1")
    planted = copy_of(service, "1", tmp_path, 5.0)
    keys = service.home / "keys"
    try:
        assert service.cli("keys", "new", "release").returncode == 0
        found = KeyFolder(keys).signing()
        assert found is not None
        service.registry().sign_version(MODEL, planted.version, found[1].sign(MODEL, "1", planted.digest))
        promoted = service.cli("promote", MODEL, planted.version)
        assert promoted.returncode == 1
        assert "refused at step verify" in promoted.stderr
        assert "does not fit" in promoted.stderr
        assert service.detect()["metadata"]["version"] == "1"
        signed = service.cli("versions", "sign", MODEL, planted.version)
        assert signed.returncode == 0, signed.stderr
        assert service.cli("promote", MODEL, planted.version).returncode == 0
        assert service.detect()["metadata"]["version"] == planted.version
        verdicts = {each["gate"]: each["reason"] for each in service.rollout()["verdicts"]}
        assert f"signed by release (key {found[1].public.ident})" in verdicts["signature"]
        assert f"trusted {found[1].public.ident}" in service.cli("versions", MODEL).stdout
        service.settle("1")
    finally:
        shutil.rmtree(keys, ignore_errors=True)
    service.settle("1")
