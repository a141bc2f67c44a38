"""``steelyard register`` of bad files beside a running service: refused with a reason, the old version goes on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from clients import Clients

from models import demo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from running import Service


def _changed(path: Path, change: Callable[[Any], None]) -> None:
    """Write version 1's checkpoint to ``path`` after ``change`` of its model."""
    import torch  # noqa: PLC0415 - slow, and only these cases need it

    checkpoint = torch.load(demo.weights_path(1), map_location="cpu", weights_only=False)
    change(checkpoint["model"])
    torch.save(checkpoint, path)


def _nan(path: Path) -> None:
    _changed(path, lambda model: next(model.parameters()).data.fill_(np.nan))


def _no_classes(path: Path) -> None:
    def forget(model: Any) -> None:
        model.names = {}

    _changed(path, forget)


def _byte_lost(path: Path) -> None:
    path.write_bytes(demo.weights_path(1).read_bytes()[:-1])


def _bit_flipped(path: Path) -> None:
    data = bytearray(demo.weights_path(1).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BAD = {
    "NaN weights": (_nan, "NaN"),
    "no classes": (_no_classes, "class"),
    "one byte lost": (_byte_lost, "damaged"),
    "one bit flipped": (_bit_flipped, "damaged"),
}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.replace(" ", "-"))
def test_a_bad_file_is_not_registered(service: Service, tmp_path: Path, kind: str) -> None:
    """One line on standard error names the reason, no version appears, and clients are served throughout."""
    make, reason = BAD[kind]
    make(tmp_path / "bad.pt")
    service.settle("1")
    before = service.registry().versions("checkout")
    with Clients(service.url, service.tray, count=1) as load:
        registered = service.cli("register", str(tmp_path / "bad.pt"), "--model", "checkout", "--promote")
    assert registered.returncode in {1, 2}
    assert reason in registered.stderr
    assert "Traceback" not in registered.stderr
    assert service.registry().versions("checkout") == before
    assert {(e.status, e.version) for e in load.exchanges} == {(200, "1")}


def test_a_zeroed_head_is_registered_but_not_promoted(service: Service, tmp_path: Path) -> None:
    """A blind version exists, ``--promote`` refuses it with its reason, and the old version serves."""

    def blind(model: Any) -> None:
        for parameter in model.model[-1].parameters():
            parameter.data.zero_()
        for branch in model.model[-1].cv3:
            branch[-1].bias.data.fill_(-10)

    _changed(tmp_path / "blind.pt", blind)
    service.settle("1")
    registered = service.cli("register", str(tmp_path / "blind.pt"), "--model", "checkout", "--promote")
    assert registered.returncode == 1
    assert "no box" in registered.stderr
    assert service.detect()["metadata"]["version"] == "1"
    assert service.rollout()["desired"] == "1"


def test_the_same_file_registers_nothing_new(service: Service, tmp_path: Path) -> None:
    """A copy of version 1 under another file name is version 1."""
    copy = tmp_path / "another-name.pt"
    shutil.copy(demo.weights_path(1), copy)
    registered = service.cli("register", str(copy), "--model", "checkout", "--json")
    assert registered.returncode == 0, registered.stderr
    assert json.loads(registered.stdout)["version"] == "1"


def test_the_demo_manifests_record_what_was_measured(service: Service, tmp_path: Path) -> None:
    """Version 2's manifest holds a better mAP50-95 than version 1's, as measured on the same held-out scenes."""
    found = []
    for version in ("1", "2"):
        folder = tmp_path / version
        folder.mkdir()
        service.registry().fetch("checkout", version, folder)
        found.append(json.loads((folder / "manifest.json").read_bytes())["metrics"]["mAP50-95"])
    assert found == [demo.metrics(1)["map50_95"], demo.metrics(2)["map50_95"]]
    assert found[1] > found[0] + 0.03
