"""Registration end to end without Ray: real conversion in the sandbox, real MLflow on SQLite, real and bad weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scratch import NAMES, saved

from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import ConversionError, ReleaseRejectedError
from models.types import Detections, Release, Thresholds
from models.weights.fake_registry import FakeRegistry
from models.weights.golden import check_sight
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.register import promote, register
from models.weights.release import MANIFEST, MODEL_YAML, ONNX, SAFETENSORS, Manifest, open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable


def fetched(registry: Any, model: str, version: str, folder: Path) -> Release:
    """Fetch and open a version as a replica would."""
    folder.mkdir()
    registry.fetch(model, version, folder)
    digest = registry.version(model, version).digest
    return open_release(model, version, read_folder(folder), expect_digest=digest)


def detector(release: Release) -> Callable[[bytes], Detections]:
    """Return the release as a function of image bytes, run by ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415 - only the tests with real weights need it

    session = onnxruntime.InferenceSession(release.files[ONNX].tobytes(), providers=["CPUExecutionProvider"])
    graph_input = session.get_inputs()[0]
    assert (graph_input.name, graph_input.type) == ("images", "tensor(uint8)")
    assert [output.name for output in session.get_outputs()] == ["detections"]

    def detect(data: bytes) -> Detections:
        tensor, placement = letterbox(decode(data), release.contract)
        output = session.run(None, {"images": tensor[None]})[0][0]
        return postprocess(output, placement, release.contract, Thresholds(conf=0.05))

    return detect


def test_a_checkpoint_becomes_a_release_that_opens_and_sees(scratch_model: Any, tmp_path: Path) -> None:
    """Convert, store in MLflow, fetch, open, sight test: one whole way, and the same bytes again make nothing new."""
    registry = MlflowRegistry(f"sqlite:///{tmp_path}/registry/mlflow.db")
    stages: list[tuple[str, float]] = []
    source = saved(scratch_model, tmp_path / "fruit.pt")
    first = register(
        registry,
        source,
        model="fruit",
        metrics={"mAP50-95(B)": 0.5},
        progress=lambda stage, done: stages.append((stage, done)),
    )
    assert first.created
    assert (first.info.state, first.info.promotable, first.info.metrics) == ("ready", "true", {"mAP50-95(B)": 0.5})
    assert [done for _, done in stages] == sorted(done for _, done in stages)
    assert stages[-1] == ("store", 1.0)

    release = fetched(registry, "fruit", "1", tmp_path / "fetched")
    assert set(release.files) >= {MANIFEST, ONNX, SAFETENSORS, MODEL_YAML}
    contract = release.contract
    assert (contract.names, contract.stride, contract.imgsz) == (tuple(NAMES.values()), 32, 160)
    assert (contract.head, contract.dynamic) == ("end2end", True)
    report = check_sight(release, detector(release))
    assert report.matched == report.expected > 0

    manifest = Manifest.from_bytes(release.files[MANIFEST].tobytes())
    assert manifest.parity["rebuild"] == "bit-equal"
    assert manifest.parity["max_pixel"] <= 1.0
    assert manifest.metrics == {"mAP50-95(B)": 0.5}

    again = register(registry, source, model="fruit")
    assert (again.created, again.info.version) == (False, "1")
    assert promote(registry, "fruit", "1").version == "1"
    assert not (Path.cwd() / "mlruns").exists()
    _check_extreme_shapes(release)


def _check_extreme_shapes(release: Release) -> None:
    """Demand answers for the longest, thinnest images, which have fewer anchors than the 300 boxes asked for."""
    import onnxruntime  # noqa: PLC0415 - see detector

    session = onnxruntime.InferenceSession(release.files[ONNX].tobytes(), providers=["CPUExecutionProvider"])
    for shape in ((1, 32, 160, 3), (3, 160, 32, 3), (2, 160, 160, 3)):
        output = session.run(None, {"images": np.zeros(shape, np.uint8)})[0]
        assert output.shape[0] == shape[0]
        assert output.shape[2] == 6
        assert np.isfinite(output).all()


def test_many_processes_may_open_an_empty_registry_at_once(tmp_path: Path) -> None:
    """Without the lock around the first open, MLflow's migrations race and break the database for good."""
    code = "import sys; from models.weights.mlflow_registry import open_registry; open_registry(sys.argv[1])"
    uri = f"sqlite:///{tmp_path}/registry/mlflow.db"
    racers = [subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [racer.communicate(timeout=120)[1].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, errors
    assert MlflowRegistry(uri).models() == []


def _nan(model: Any) -> None:
    model.model[3].conv.weight.data[0, 0, 0, 0] = float("nan")


def _no_names(model: Any) -> None:
    model.names = {}


def _too_many_names(model: Any) -> None:
    model.names = {**NAMES, 3: "fig"}


def _segment(model: Any) -> None:
    model.task = "segment"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, "NaN or infinity"),
        (_no_names, "no classes"),
        (_too_many_names, "names 4 classes and predicts 3"),
        (_segment, "task is segment"),
    ],
)
def test_a_model_that_cannot_serve_is_refused_in_one_sentence(
    scratch_model: Any, tmp_path: Path, change: Callable[[Any], None], words: str
) -> None:
    """Loadable files whose content is no sound detector; nothing is registered."""
    registry = FakeRegistry()
    with pytest.raises(ConversionError, match=words) as caught:
        register(registry, saved(scratch_model, tmp_path / "bad.pt", change=change), model="bad")
    assert "\n" not in str(caught.value)
    assert registry.models() == []


def test_a_zeroed_head_is_registered_but_not_promoted(scratch_model: Any, tmp_path: Path) -> None:
    """A blind model has no golden image; the tag says so and promote refuses with it."""

    def zero(model: Any) -> None:
        for tensor in model.model[-1].parameters():
            tensor.data.zero_()
        for branch in (*model.model[-1].one2one_cv3, *model.model[-1].cv3):
            branch[-1].bias.data.fill_(-10)

    registry = FakeRegistry()
    found = register(registry, saved(scratch_model, tmp_path / "zero.pt", change=zero), model="blind")
    assert found.info.state == "ready"
    assert "no box with a score of 0.5" in found.info.promotable
    with pytest.raises(ReleaseRejectedError, match="may not be promoted: in ") as caught:
        promote(registry, "blind", "1")
    assert caught.value.step == "promote"
    release = fetched(registry, "blind", "1", tmp_path / "fetched")
    with pytest.raises(ReleaseRejectedError, match="no golden image"):
        check_sight(release, detector(release))


def test_damaged_and_foreign_files_are_refused_in_one_sentence(scratch_model: Any, tmp_path: Path) -> None:
    """A byte lost, a bit flipped, no bytes, text, a plain dict: each gets its sentence, and nothing is registered."""
    import torch  # noqa: PLC0415 - see scratch_model

    good = saved(scratch_model, tmp_path / "good.pt").read_bytes()
    bad = {
        "byte-lost": good[:-1],
        "bit-flipped": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
        "byte-lost-inside": good[: len(good) // 2] + good[len(good) // 2 + 1 :],
        "empty": b"",
        "text": b"these are not the weights you are looking for\n" * 50,
    }
    registry = FakeRegistry()
    for name, data in bad.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=r"damaged|empty|safety") as caught:
            register(registry, path, model=name)
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
    torch.save({"weights": [1, 2]}, tmp_path / "dict.pt")
    with pytest.raises(ConversionError):
        register(registry, tmp_path / "dict.pt", model="dict")
    assert registry.models() == []


class _Evil:
    """Runs a command when it is unpickled by anything but a restricted loader."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class _Foreign:
    """Its pickle names a module that is installed nowhere."""

    __module__ = "a_package_to_install"


def test_an_evil_checkpoint_runs_nothing(scratch_model: Any, tmp_path: Path) -> None:
    """Whether alone or beside a real model, the planted command leaves no marker."""
    import torch  # noqa: PLC0415 - see scratch_model

    marker = tmp_path / "marker"
    evil = _Evil(f"touch {marker}")
    torch.save({"model": evil}, tmp_path / "alone.pt")
    torch.save({"model": scratch_model, "ema": None, "train_args": {}, "extra": evil}, tmp_path / "beside.pt")
    for name in ("alone", "beside"):
        with pytest.raises(ConversionError, match="not loaded for safety"):
            register(FakeRegistry(), tmp_path / f"{name}.pt", model=name)
    assert not marker.exists()
    torch.load(tmp_path / "alone.pt", weights_only=False)
    assert marker.exists(), "the control: an unrestricted load does run the command"


def test_a_checkpoint_that_names_a_package_installs_nothing(scratch_model: Any, tmp_path: Path) -> None:
    """Ultralytics would pip-install what a checkpoint names; here it is refused."""
    import types  # noqa: PLC0415 - beside torch

    import torch  # noqa: PLC0415 - see scratch_model

    module = types.ModuleType(_Foreign.__module__)
    module._Foreign = _Foreign  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        torch.save({"model": scratch_model, "extra": _Foreign()}, tmp_path / "foreign.pt")
    finally:
        del sys.modules[module.__name__]
    with zipfile.ZipFile(tmp_path / "foreign.pt") as archive:
        assert any(b"a_package_to_install" in archive.read(name) for name in archive.namelist())
    with pytest.raises(ConversionError, match="not loaded for safety"):
        register(FakeRegistry(), tmp_path / "foreign.pt", model="foreign")


@pytest.mark.shared
@pytest.mark.parametrize(("version", "head"), [("1", "end2end"), ("2", "raw")])
def test_coco_checkpoints_see_the_bus_and_its_people(
    coco: FakeRegistry, version: str, head: str, tmp_path: Path
) -> None:
    """The official architectures, with and without NMS: one bus and four persons, as torch sees them."""
    release = fetched(coco, "coco", version, tmp_path / "fetched")
    assert (release.contract.head, release.contract.imgsz, len(release.contract.names)) == (head, 640, 80)
    assert set(release.files) >= {SAFETENSORS, MODEL_YAML}
    detect = detector(release)
    report = check_sight(release, detect)
    assert report.matched == report.expected
    bus = next(image for image in release.golden if "bus" in image.name)
    found = detect(bus.data)
    seen = [release.contract.names[cls] for cls in found.classes[found.scores >= 0.25]]
    assert sorted(seen) == ["bus"] + ["person"] * 4


@pytest.mark.shared
def test_a_static_int8_export_is_served_at_its_own_size(shared: Path, tmp_path: Path) -> None:
    """An .onnx of a fixed shape: dynamic is False, its goldens are what the file itself sees."""
    source = shared / "weights" / "yolo26n-coco-int8-dynamic.onnx"
    if not source.is_file():
        pytest.skip(f"{source.name} is not in the folder that STEELYARD_SHARED names")
    registry = FakeRegistry()
    register(registry, source, model="int8")
    release = fetched(registry, "int8", "1", tmp_path / "fetched")
    assert (release.contract.dynamic, release.contract.imgsz, release.contract.head) == (False, 640, "end2end")
    assert SAFETENSORS not in release.files
    report = check_sight(release, detector(release))
    assert report.matched == report.expected > 0


@pytest.mark.shared
def test_two_detectors_of_the_same_classes_pass_each_others_pictures(coco: FakeRegistry, tmp_path: Path) -> None:
    """A candidate is also shown the serving version's golden set."""
    serving = fetched(coco, "coco", "1", tmp_path / "1")
    candidate = fetched(coco, "coco", "2", tmp_path / "2")
    report = check_sight(candidate, detector(candidate), serving)
    assert report.serving_matched >= report.serving_expected / 2 > 0
