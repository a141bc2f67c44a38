"""The overlays, built: what each of them makes of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from checks import overlays, sense
from k8s_folder import K8S, replace

if TYPE_CHECKING:
    from pathlib import Path

    from checks.manifests import Manifest


@pytest.fixture(name="built", scope="module")
def _built() -> dict[str, list[Manifest]]:
    """Return the manifests of each overlay, or skip where there is no kustomize."""
    if overlays.find_kustomize()[0] is None:
        pytest.skip(overlays.find_kustomize()[1])
    built, found = overlays.build_overlays(K8S)
    assert found.errors == []
    return built


def body(manifests: list[Manifest], kind: str, name: str) -> Any:
    """Return the body of one manifest."""
    return next(each.body for each in manifests if (each.kind, each.name) == (kind, name))


def test_every_overlay_is_a_whole_cluster(built: dict[str, list[Manifest]]) -> None:
    """Each overlay makes sense by itself; the kinds of the Prometheus operator are in all but dev."""
    assert set(built) == set(overlays.EXPECTED)
    for name, manifests in built.items():
        assert sense.check_sense(manifests).errors == []
        assert any(each.kind == "PodMonitor" for each in manifests) is (name != "dev")


def test_the_gpu_overlay_gives_each_replica_a_gpu(built: dict[str, list[Manifest]]) -> None:
    """Image, resources and settings of the workers agree, and the head needs no GPU."""
    cluster = body(built["gpu"], "RayService", "steelyard")["spec"]["rayClusterConfig"]
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    settings = body(built["gpu"], "ConfigMap", "steelyard")["data"]

    assert worker["image"] == "steelyard-cuda:0.1.0"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == settings["STEELYARD_GPUS"] == "1"
    assert "nvidia.com/gpu" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_an_image_is_named_in_one_place(built: dict[str, list[Manifest]]) -> None:
    """Kustomize puts the image's name into the head and the workers alike."""
    for manifests in built.values():
        cluster = body(manifests, "RayService", "steelyard")["spec"]["rayClusterConfig"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1


def test_an_old_kustomize_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12's kubectl cannot build the overlays: that is skipped with its version, not passed."""
    old = tmp_path / "kubectl"
    old.write_text("#!/bin/sh\necho 'Kustomize Version: v2.0.3'\n", encoding="utf-8")
    old.chmod(0o755)
    monkeypatch.setattr(overlays, "find_tool", lambda _: str(old))

    built, found = overlays.build_overlays(K8S)

    assert built == {}
    assert "2.0, older than 5.0" in found.skipped[0]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("overlays/gpu/workers.yaml", "workerGroupSpecs/0/template/spec/tolerations", "workerGroupSpec/0/tolerations"),
        ("overlays/gpu/environment.yaml", "name: steelyard", "name: steelyerd"),
        ("overlays/cpu/kustomization.yaml", "components:", "component:"),
        ("overlays/dev/kustomization.yaml", "patches:", "patchesStrategicMerge:"),
    ],
)
@pytest.mark.usefixtures("built")
def test_broken_overlay_is_an_error(folder: Path, file: str, old: str, new: str) -> None:
    """A patch of nothing, a field that kustomize does not know, and one that it will soon not know are found."""
    replace(folder / file, old, new)

    assert overlays.build_overlays(folder)[1].errors


@pytest.mark.usefixtures("built")
def test_traces_find_their_way_out_where_they_are_asked_for(folder: Path) -> None:
    """An overlay that lists the component has the collector's address and makes sense; others have none."""
    listed = "../../components/prometheus\n"
    replace(folder / "overlays/cpu/kustomization.yaml", listed, f"{listed}  - ../../components/traces\n")

    built, found = overlays.build_overlays(folder)

    assert found.errors == sense.check_sense(built["cpu"]).errors == []
    endpoint = body(built["cpu"], "ConfigMap", "steelyard")["data"]["STEELYARD_TRACE_ENDPOINT"]
    (way,) = body(built["cpu"], "NetworkPolicy", "traces")["spec"]["egress"]
    assert endpoint.endswith(f":{way['ports'][0]['port']}")
    assert "STEELYARD_TRACE_ENDPOINT" not in body(built["gpu"], "ConfigMap", "steelyard")["data"]
