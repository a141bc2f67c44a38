"""Rebuilding a network in torch: what it answers, what is refused, and what two threads may share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from models.engine.backends import torch_network
from models.engine.backends.torch_network import grid, look, place, rebuild, twin
from models.errors import ReleaseRejectedError
from models.types import Contract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch = pytest.importorskip("torch")
pytest.importorskip("ultralytics")

NAMES = ("apple", "bread", "cheese")
END2END = Contract("detect", NAMES, 32, 96, "end2end")
RAW = Contract("detect", NAMES, 32, 96, "raw")
ANCHORS = 8 * 12 + 4 * 6 + 2 * 3
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))


@pytest.mark.parametrize(("contract", "shape"), [(END2END, (2, ANCHORS, 6)), (RAW, (2, 7, ANCHORS))])
def test_both_heads_answer_as_their_release_says(
    tiny_weights: Callable, contract: Contract, shape: tuple[int, ...]
) -> None:
    """The end-to-end head gives at most 300 rows, the raw one a column an anchor; scores lie between 0 and 1."""
    network = rebuild(tiny_weights(), contract)
    with torch.inference_mode():
        answer = look(network, IMAGES)
    assert (tuple(answer.shape), answer.dtype) == (shape, torch.float32)
    scores = answer[..., 4] if contract.head == "end2end" else answer[:, 4:]
    assert 0 < scores.min() < scores.max() < 1


def test_the_rebuilt_network_is_the_registered_one(tiny_weights: Callable) -> None:
    """It is the plain network bit for bit; folded, channels last, no answer moves by a thousandth."""
    from safetensors.torch import load  # noqa: PLC0415 - together with torch

    files = tiny_weights()
    detection_model, _ = torch_network._ultralytics()
    plain = detection_model(yaml.safe_load(files["model.yaml"].tobytes()), ch=3, verbose=False)
    plain.load_state_dict(load(files["model.safetensors"].tobytes()))
    plain.eval().end2end = False
    with torch.inference_mode():
        planes = IMAGES.permute(0, 3, 1, 2).contiguous().float() / 255
        expected = plain(planes)[0]
        same = rebuild(files, RAW, fold=False)(planes)[0]
        found = look(place(rebuild(files, RAW), "cpu", half=False), IMAGES)
    assert torch.equal(same, expected)
    assert torch.allclose(found, expected, rtol=0, atol=1e-3)


def test_half_precision_decodes_boxes_in_full(tiny_weights: Callable) -> None:
    """In fp16 the answer is float32, on no grid of half pixels, and within the promise of fp32; twins do the same."""
    files = tiny_weights()
    wide = Contract("detect", NAMES, 32, 1024, "raw")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 32, 1024, 3), np.uint8))
    half = place(rebuild(files, wide), "cpu", half=True)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    with torch.inference_mode():
        full = look(place(rebuild(files, wide), "cpu", half=False), images)
        found = look(half, images)
        assert torch.equal(look(twin(half), images), found)
    assert found.dtype == torch.float32
    far = found[0, 0][found[0, 0] > 512]
    assert len(far) > 100
    assert (far * 2 != (far * 2).round()).any()
    assert (found - full)[:, :4].abs().max() < 0.5
    assert (found - full)[:, 4:].abs().max() < 0.01


def test_twins_share_weights_and_nothing_else(tiny_weights: Callable) -> None:
    """A network that meets another shape does not touch the grid of its twin."""
    network = rebuild(tiny_weights(), RAW)
    other = twin(network)
    assert all(a is b for a, b in zip(network.parameters(), other.parameters(), strict=True))
    with torch.inference_mode():
        expected = look(network, IMAGES)
        before = grid(network)
        look(other, IMAGES[:, :32, :32])
        assert all(a is b for a, b in zip(grid(network), before, strict=True))
        assert torch.equal(look(network, IMAGES), expected)


def changed(files: dict[str, np.ndarray], **changes: object) -> dict[str, np.ndarray]:
    """Return ``files`` with other entries in the yaml."""
    spec = yaml.safe_load(files["model.yaml"].tobytes()) | changes
    return files | {"model.yaml": np.frombuffer(yaml.safe_dump(spec).encode(), np.uint8)}


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "__import__('pathlib').Path('owned').touch()"},
        {"activation": "nn.SiLU().__class__"},
        {"backbone": [[-1, 1, "torch_safe_load", ["owned"]]]},
        {"backbone": [[-1, 1, "TorchVision", [8, "resnet18", "DEFAULT"]]]},
        {"backbone": [[-1, 1, "nn.Module.__init__", []]]},
        {"backbone": [[-1, 1, "Conv"]]},
        {"backbone": [[-1, 1, ["Conv"], [8]]]},
        {"head": [[[2, 3, 4], 1, "Segment", ["nc"]]]},
        {"head": []},
        {"nc": 4},
    ],
)
def test_a_yaml_runs_nothing_and_names_only_layers(
    tiny_weights: Callable, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be evaluated, looked up or fetched is refused for good before anything reads it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseRejectedError) as caught:
        rebuild(changed(tiny_weights(), **changes), END2END)
    assert caught.value.step == "load"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("activation", ["nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nn.SiLU(inplace=True)"])
def test_documented_activations_are_served(tiny_weights: Callable, activation: str) -> None:
    """The forms that Ultralytics documents are let through, and leave the next network's activation alone."""
    rebuild(changed(tiny_weights(), activation=activation), END2END)
    default = rebuild(tiny_weights(), END2END)
    assert type(default.model[0].act).__name__ == "SiLU"


@pytest.mark.parametrize(
    "contract",
    [Contract("detect", ("apple",), 32, 96, "raw"), Contract("detect", NAMES, 64, 96, "raw")],
)
def test_the_network_must_keep_the_contract(tiny_weights: Callable, contract: Contract) -> None:
    """Other classes or strides than the release says are refused."""
    with pytest.raises(ReleaseRejectedError, match="other classes or strides"):
        rebuild(tiny_weights(), contract)


def test_an_end_to_end_release_needs_that_head(tiny_weights: Callable) -> None:
    """A network with the one-to-many head alone cannot answer for a release that promises the other."""
    with pytest.raises(ReleaseRejectedError, match="end-to-end head"):
        rebuild(tiny_weights(end2end=False), END2END)
    rebuild(tiny_weights(end2end=False), RAW)


def test_an_onnx_only_release_says_what_to_choose() -> None:
    """Where registration found no rebuild, the message names the backend that serves it."""
    with pytest.raises(ReleaseRejectedError, match="onnxruntime"):
        rebuild({"model.onnx": np.zeros(1, np.uint8)}, END2END)


def test_the_environment_is_as_before(tiny_weights: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the import is told through the environment is taken back."""
    monkeypatch.setenv("YOLO_OFFLINE", "false")
    monkeypatch.delenv("YOLO_CONFIG_DIR", raising=False)
    rebuild(tiny_weights(), END2END)
    assert os.environ["YOLO_OFFLINE"] == "false"
    assert "YOLO_CONFIG_DIR" not in os.environ
