"""A detector in torch, rebuilt from a release's tensors and yaml: no byte is unpickled, no text is evaluated.

A release holds ``model.safetensors`` and ``model.yaml`` only where registration has proved that this rebuild answers as
the checkpoint did, bit for bit (``models/weights/checkpoint.py``).
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from models.errors import ReleaseRejectedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.types import Contract

WEIGHTS = "model.safetensors"
ARCHITECTURE = "model.yaml"
CHANNELS = 3
MOST_BOXES = 300
"""Rows of an end-to-end answer, as the release's ONNX graph gives them."""
ROW = 4
"""A layer of the yaml: where from, how often, what, with which arguments."""
ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Za-z0-9]+\((inplace=(True|False)|[0-9.]*)\)")
TORCH_LAYERS = frozenset(
    f"nn.{name}"
    for name in (
        "BatchNorm2d",
        "Conv2d",
        "ConvTranspose2d",
        "Identity",
        "MaxPool2d",
        "ReflectionPad2d",
        "Upsample",
        "ZeroPad2d",
    )
)
NETWORK_LAYERS = frozenset({"TorchVision"})
"""Layers that fetch weights from elsewhere."""

QUIET = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "1",
}
"""What Ultralytics reads of the environment when it is imported: no network, no installing, no unpickling."""

_importing = threading.Lock()


def rebuild(files: Mapping[str, NDArray[np.uint8]], contract: Contract, *, fold: bool = True) -> Any:
    """Return the network of ``files``, fp32 on the CPU, in evaluation mode, its head chosen.

    Called with float (n, 3, h, w), 0 to 1, it answers (output, raw predictions), the output as ``contract.head`` says.
    fold: fold batch norms into convolutions, which is faster and moves the last digits of an answer.

    Raises ReleaseRejectedError (step ``load``) when the files are missing, damaged or of another architecture.
    """
    import yaml  # noqa: PLC0415 - together with torch
    from safetensors import SafetensorError  # noqa: PLC0415 - as above
    from safetensors.torch import load  # noqa: PLC0415 - as above

    if WEIGHTS not in files or ARCHITECTURE not in files:
        _refuse(
            "the release cannot be rebuilt in torch, as registration found: it holds no weights beside its ONNX graph; "
            "choose backend=onnxruntime for it"
        )
    detection_model, layers = _ultralytics()
    try:
        spec = yaml.safe_load(files[ARCHITECTURE].tobytes())
        _check_architecture(spec, layers)
        network = detection_model(spec, ch=CHANNELS, verbose=False)
        tensors = load(files[WEIGHTS].tobytes())
        network.load_state_dict({name: _widened(tensor) for name, tensor in tensors.items()}, strict=True)
        _choose_head(network, contract)
        network = network.float().eval()
        return (network.fuse(verbose=False) if fold else network).requires_grad_(requires_grad=False)
    except (ReleaseRejectedError, MemoryError):
        raise
    except (
        SafetensorError,
        yaml.YAMLError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        msg = "the network's weights do not fit its architecture, or one of them is damaged; register the model again"
        raise ReleaseRejectedError(msg, step="load") from error


def place(network: Any, device: Any, *, half: bool) -> Any:
    """Move ``network`` to ``device``, channels last, in fp16 up to the head's last convolutions; returns it.

    Boxes are decoded in fp32 all the same: fp16 counts in steps of half a pixel from 512 on.
    """
    import torch  # noqa: PLC0415 - a service loads only the runtime it uses

    network = network.to(device=device, memory_format=torch.channels_last)
    if not half:
        return network
    network = network.half()
    head = network.model[-1]
    head.dfl.float()
    for branch in (*_branches(head, "cv2"), *_branches(head, "cv3")):
        branch.register_forward_hook(_to_single)
    return network


def twin(network: Any) -> Any:
    """Return a second network over the same tensors.

    The head keeps the grid of the last shape it saw, so two threads may not run one network at once.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def look(network: Any, images: Any) -> Any:
    """Run ``network`` on a tensor of its device, uint8 (n, h, w, 3) RGB; returns float32 as the release's head says."""
    weight = next(network.parameters())
    # In memory NHWC is what torch calls NCHW with channels last: nothing is moved, only scaled.
    planes = images.permute(0, 3, 1, 2).to(weight.dtype).div_(255)
    return network(planes)[0].float()


def grid(network: Any) -> tuple[Any, Any]:
    """Return the head's anchors and strides of the shape it saw last; a recorded graph reads them where they lie."""
    head = network.model[-1]
    return head.anchors, head.strides


def _choose_head(network: Any, contract: Contract) -> None:
    head = network.model[-1]
    end2end = contract.head == "end2end"
    if end2end and getattr(head, "one2one_cv2", None) is None:
        _refuse("the release promises an end-to-end head that its network does not have; register the model again")
    if head.nc != len(contract.names) or int(max(network.stride)) != contract.stride:
        _refuse("the network has other classes or strides than its release says; register the model again")
    head.max_det, head.agnostic_nms = MOST_BOXES, False
    if getattr(head, "one2one_cv2", None) is not None:
        network.end2end = end2end


def _branches(head: Any, name: str) -> list[Any]:
    found = getattr(head, f"one2one_{name}", None) or getattr(head, name, None)
    return [] if found is None else list(found)


def _to_single(_module: Any, _inputs: Any, output: Any) -> Any:
    return output.float()


def _widened(tensor: Any) -> Any:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_architecture(spec: Any, layers: Any) -> None:
    """Refuse a yaml that names anything but layers of a detector: its reader looks names up and evaluates one text."""
    from torch import nn  # noqa: PLC0415 - see place

    if not isinstance(spec, dict):
        _refuse("the network's architecture cannot be read; register the model again")
    activation = spec.get("activation")
    if activation is not None and not ACTIVATION.fullmatch(str(activation)):
        _refuse("the network's architecture names an activation that is not served; register the model again")
    rows = [*spec["backbone"], *spec["head"]]
    for row in rows:
        name = row[2] if isinstance(row, list) and len(row) == ROW else None
        layer = getattr(layers, name, None) if isinstance(name, str) and name not in NETWORK_LAYERS else None
        if name not in TORCH_LAYERS and not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            _refuse("the network's architecture names something that is no layer of a detector; register it again")
    if rows[-1][2] != "Detect":
        _refuse("the network's architecture does not end in a detection head; register the model again")


def _ultralytics() -> tuple[Any, Any]:
    """Return the class of detectors and the module of all layers.

    The import is kept off the network and out of the user's folders.
    """
    from models.torchvision_ops import ensure_torchvision_ops  # noqa: PLC0415 - imports torch

    with _importing, tempfile.TemporaryDirectory() as folder, _environment(QUIET | {"YOLO_CONFIG_DIR": folder}):
        ensure_torchvision_ops()
        from ultralytics.nn import modules  # noqa: PLC0415 - takes a second, and only this backend needs it
        from ultralytics.nn.tasks import DetectionModel  # noqa: PLC0415 - as above
    return DetectionModel, modules


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _refuse(message: str) -> NoReturn:
    raise ReleaseRejectedError(message, step="load")
