"""A detector that was never trained, as checkpoints hold one, and the file that a trainer would save of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = {0: "apple", 1: "pear", 2: "plum"}


@pytest.fixture(scope="session")
def scratch_model() -> Any:
    """Return a YOLO26n of three classes, untrained, whose bias makes it sure of something everywhere."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    import torch  # noqa: PLC0415 - seconds, and only these tests need it

    from models.torchvision_ops import ensure_torchvision_ops  # noqa: PLC0415 - likewise

    ensure_torchvision_ops()
    from ultralytics.nn.tasks import DetectionModel  # noqa: PLC0415 - likewise
    from ultralytics.utils import ASSETS  # noqa: PLC0415 - likewise

    torch.manual_seed(0)
    model = DetectionModel("yolo26n.yaml", nc=3, verbose=False)
    model.names, model.args, model.task = dict(NAMES), {"imgsz": 160, "task": "detect"}, "detect"
    # Untrained features fade layer by layer, and equal scores would leave the choice of 300 boxes to chance: another
    # initialisation keeps them alive, and the last layer is scaled so that scores spread over a photograph.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    photographs = [cv2.resize(cv2.imread(str(path)), (160, 160)) for path in sorted(ASSETS.glob("*.jpg"))]
    batch = torch.from_numpy(np.stack(photographs)[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
    head, wanted = model.model[-1], torch.tensor([-2.0, -4.0, -9.0])
    with torch.no_grad():
        for branches in (head.cv3, head.one2one_cv3):
            for branch in branches:
                branch[-1].bias.zero_()
        for branch in (*head.cv2, *head.one2one_cv2):
            branch[-1].weight.mul_(0.05)
        levels = model.eval()(batch)[1]["one2one"]["scores"].split([400, 100, 25], dim=2)
        for branches in (head.cv3, head.one2one_cv3):
            for branch, logits in zip(branches, levels, strict=True):
                scale = 1.0 / logits.std(dim=(0, 2))
                branch[-1].weight.mul_(scale[:, None, None, None])
                branch[-1].bias[:] = wanted - logits.mean(dim=(0, 2)) * scale
    return model


def saved(model: Any, path: Path, *, change: Callable[[Any], None] | None = None) -> Path:
    """Save a copy of ``model``, changed, as Ultralytics' trainer does."""
    import copy  # noqa: PLC0415 - beside torch

    import torch  # noqa: PLC0415 - see scratch_model

    model = copy.deepcopy(model)
    if change is not None:
        change(model)
    torch.save(
        {
            "epoch": -1,
            "model": model.half(),
            "ema": None,
            "train_args": dict(model.args),
        },
        path,
    )
    return path
