"""Which runtime is chosen, and what is refused in one sentence."""

from __future__ import annotations

import importlib.util
import platform
from itertools import chain
from typing import get_args

import pytest

from models.engine.backends import select
from models.engine.backends.fake import FakeBackend
from models.engine.backends.select import select_backend
from models.errors import SettingsError
from serve.settings import Settings


def test_fake_is_only_chosen_by_name() -> None:
    """The fake never stands in for a real runtime."""
    assert select_backend("fake", precision="auto", threads=1, gpu=False).name == "fake"


def test_a_fake_takes_the_time_it_is_told() -> None:
    """A measurement of what is around the detector knows its capacity."""
    made = select_backend("fake", precision="auto", threads=1, gpu=False, fake_service_s=0.05)
    assert isinstance(made, FakeBackend)
    assert made.service_time_s == 0.05


@pytest.mark.parametrize(
    ("machine", "installed", "expected"),
    [
        ("x86_64", {"openvino", "onnxruntime"}, "openvino"),
        ("AMD64", {"openvino", "onnxruntime"}, "openvino"),
        ("aarch64", {"openvino", "onnxruntime"}, "onnxruntime"),
        ("x86_64", {"onnxruntime"}, "onnxruntime"),
    ],
)
def test_auto_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, installed: set[str], expected: str
) -> None:
    """OpenVINO on x86 where it is installed, ONNX Runtime elsewhere."""
    if importlib.util.find_spec(expected) is None:
        pytest.skip(f"{expected} is not installed")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(select, "_installed", installed.__contains__)
    assert select_backend("auto", precision="auto", threads=1, gpu=False).name == expected


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_torch_is_chosen_by_name(precision: str) -> None:
    """It serves where it is asked for, in fp32 on a CPU."""
    backend = select_backend("torch", precision=precision, threads=1, gpu=False)
    assert (backend.name, backend.precision) == ("torch", "fp32")


def test_every_setting_is_known_here() -> None:
    """What the settings allow and what can be chosen are the same names."""
    fields = Settings.model_fields
    assert set(get_args(fields["backend"].annotation)) == set(select.NAMES)
    known = {"auto", *chain.from_iterable([*select.CPU_PRECISIONS.values(), *select.GPU_PRECISIONS.values()])}
    assert set(get_args(fields["precision"].annotation)) == known


@pytest.mark.parametrize(
    ("name", "precision", "gpu", "reason"),
    [
        ("tensorflow", "auto", False, "does not exist"),
        ("openvino", "auto", True, "CPUs only"),
        ("openvino", "fp16", False, "fp32 or bf16 on a CPU"),
        ("onnxruntime", "bf16", False, "fp32 on a CPU"),
        ("onnxruntime", "fp16", False, "fp32 on a CPU"),
        ("onnxruntime", "bf16", True, "fp32 or fp16 on a GPU"),
        ("torch", "fp16", False, "fp32 on a CPU"),
        ("torch", "bf16", False, "fp32 on a CPU"),
        ("torch", "bf16", True, "fp32 or fp16 on a GPU"),
    ],
)
def test_impossible_combinations(name: str, precision: str, gpu: bool, reason: str) -> None:  # noqa: FBT001
    """What cannot work is refused before anything is loaded."""
    with pytest.raises(SettingsError, match=reason):
        select_backend(name, precision=precision, threads=1, gpu=gpu)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(select, "_installed", lambda _: False)
    with pytest.raises(SettingsError, match=r"steelyard\[cpu\]"):
        select_backend("openvino", precision="auto", threads=1, gpu=False)
