"""Releases that are whole and yet must not serve: refused at the right step, once, while the old version serves on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from clients import Clients
from planting import MODEL, edit_weights, move_alias, plant
from running import audit
from verdicts import nobody_suffered

from models.weights.manifest import MANIFEST, ONNX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from running import Service

    from models.weights.registry import VersionInfo


def _refused(service: Service, planted: VersionInfo, steps: str, reason: str) -> None:
    """Demand that the planted version is refused at one of ``steps`` for ``reason``, once, and nobody notices."""
    before = service.rollout()
    with Clients(service.url, service.tray, count=2) as load:
        move_alias(service, planted.version)
        rollout = service.wait_until(lambda r: r["state"] == "rejected" and r["desired"] == planted.version)
        # Several more polls: a refusal that is retried in a loop would show in the audit.
        seen = len(load.exchanges)
        while len(load.exchanges) < seen + 40:
            load.wait_for(before["generation"])
    assert rollout["step"] in steps.split("|"), rollout
    assert any(word in rollout["reason"] for word in reason.split("|")), rollout["reason"]
    assert rollout["serving"] == "1"
    assert {(e.status, e.version) for e in load.exchanges} == {(200, "1")}
    refused = [r for r in audit(service) if r["result"] == "rejected" and r["to"]["version"] == planted.version]
    assert len(refused) == 1
    shown = service.cli("rollout", MODEL, "--json")
    assert rollout["reason"] in json.loads(shown.stdout)["reason"]


@pytest.fixture
def sound(service: Service, tmp_path: Path) -> Path:
    """Let version 1 serve and return a folder with its files."""
    service.settle("1")
    folder = tmp_path / "release"
    folder.mkdir()
    service.registry().fetch(MODEL, "1", folder)
    return folder


def _lose_a_byte(data: bytes) -> bytes:
    return data[:-1]


def _flip_a_bit(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


@pytest.mark.parametrize(
    ("change", "reason"), [(_lose_a_byte, "bytes instead of"), (_flip_a_bit, "digest differs")], ids=["03", "04"]
)
def test_fault_03_and_04_damage_in_the_store_of_a_running_service(
    service: Service, sound: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """Half-written or flipped after it was registered: the fleet refuses it at verify."""
    before = set(service.home.rglob(ONNX))
    planted = plant(service, sound, metrics={"planted": 3.0 if change is _lose_a_byte else 4.0})
    (stored,) = set(service.home.rglob(ONNX)) - before
    stored.write_bytes(change(stored.read_bytes()))
    _refused(service, planted, "verify", reason)


class Evil:
    """Runs a command when it is unpickled by anything but a restricted loader."""

    def __init__(self, marker: Path) -> None:
        """Keep the file that the command would make."""
        self.marker = marker

    def __reduce__(self) -> Any:
        """Name the command."""
        import os  # noqa: PLC0415 - what an attacker's pickle would name

        return os.system, (f"touch {self.marker}",)


def test_fault_05_malicious_pickle(service: Service, sound: Path, tmp_path: Path) -> None:
    """A checkpoint with code in it runs nothing and becomes no version; smuggled into a release it is never opened."""
    marker, checkpoint = tmp_path / "owned", tmp_path / "evil.pt"
    torch.save({"model": Evil(marker)}, checkpoint)
    versions = len(service.registry().versions(MODEL))
    with Clients(service.url, service.tray, count=2) as load:
        load.wait_for(0)
        registered = service.cli("register", str(checkpoint), "--model", MODEL, "--promote")
        assert registered.returncode != 0
        assert "Traceback" not in registered.stderr
        assert len(service.registry().versions(MODEL)) == versions
        (sound / "weights.pt").write_bytes(checkpoint.read_bytes())
        manifest = json.loads((sound / MANIFEST).read_bytes())
        planted = plant(service, sound, files=manifest["files"], metrics={"planted": 5.0})
        move_alias(service, planted.version)
        rollout = service.wait_until(lambda r: r["desired"] == planted.version and r["state"] == "rejected")
        assert rollout["step"] == "verify"
    nobody_suffered(load)
    assert {e.version for e in load.exchanges} == {"1"}
    assert not marker.exists()


def _names(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / MANIFEST).read_bytes())["names"]
    return names


CONTRACTS: dict[str, tuple[Callable[[Path], dict[str, Any]], str, str]] = {
    "no classes": (lambda _: {"names": []}, "contract", "no classes"),
    "a class less": (lambda folder: {"names": _names(folder)[:-1]}, "contract|load|golden", "class"),
    "a class more": (lambda folder: {"names": [*_names(folder), "one more"]}, "contract|load|golden", "class|shape"),
    "another order": (lambda folder: {"names": _names(folder)[::-1]}, "contract|golden", "order|expected boxes"),
    "another task": (lambda _: {"task": "segment"}, "contract|verify", "task|segment"),
    "no such size": (lambda _: {"imgsz": 333}, "contract|verify|load|golden", "333|size|stride|32|multiple"),
}


@pytest.mark.parametrize("kind", CONTRACTS, ids=lambda kind: kind.replace(" ", "-"))
def test_fault_06_wrong_contract(service: Service, sound: Path, kind: str) -> None:
    """A manifest that promises other classes, another task or another size than clients know is refused."""
    change, steps, reason = CONTRACTS[kind]
    _refused(service, plant(service, sound, metrics={"planted": 6.0}, **change(sound)), steps, reason)


def _nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.full_like(array, np.nan)


def _shuffled(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shuffled: np.ndarray[Any, Any] = np.random.default_rng(7).permutation(array.reshape(-1)).reshape(array.shape)
    return shuffled


BLIND: dict[str, tuple[Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], int, str, str]] = {
    "NaN weights": (_nan, 0, "warm|golden", "finite|blind|NaN"),
    "zero weights": (np.zeros_like, 0, "golden", "golden|blind|box"),
    "a zeroed head": (np.zeros_like, 24, "golden", "golden|blind|box"),
    "a shuffled head": (_shuffled, 24, "warm|golden", "golden|blind|box|finite"),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.sample] if kind == "a zeroed head" else []) for kind in BLIND],
    ids=lambda kind: kind.replace(" ", "-"),
)
def test_fault_07_degenerate_outputs(service: Service, sound: Path, kind: str) -> None:
    """Weights that load and see nothing, or nonsense, fail the golden images before they answer anybody."""
    change, last, steps, reason = BLIND[kind]
    edit_weights(sound, change, last=last)
    _refused(service, plant(service, sound), steps, reason)
