"""The two torchvision operators that Ultralytics' train, val and predict stumble over on a machine without a GPU.

The torchvision wheel on PyPI links against CUDA. Where CUDA is missing its compiled operators do not load, and
`import torchvision` then fails because `torchvision::nms` is unknown. Call `ensure_torchvision_ops` first.

Never export a model with `nms=True` in a process that uses the stand-in: the traced graph would contain it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def ensure_torchvision_ops() -> None:
    """Make `import torchvision` and its nms work; does nothing where the compiled operators load."""
    if _compiled_ops_load() or hasattr(torch.ops.torchvision, "nms"):
        return
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.impl("torchvision::nms", "default", _nms)
    torch.library.impl("torchvision::qnms", "default", _no_quantized_nms)
    import torchvision.extension  # noqa: PLC0415 - it can be imported only now that the operators are known

    # torchvision.ops.nms refuses to call its operator unless this says that the compiled ones are there.
    torchvision.extension._has_ops = lambda: True  # noqa: SLF001


def _compiled_ops_load() -> bool:
    """Whether torchvision is installed and its compiled library loads beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            return False
        return True
    return False


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression.

    Args:
        dets: float (n, 4), x1 y1 x2 y2 in any unit.
        scores: float (n,).
        iou_threshold: 0-1; a box that overlaps a better one by more is dropped.

    Returns:
        int64 (k,), indices of the boxes kept, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    kept: list[torch.Tensor] = []
    areas = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    while order.numel() > 0:
        best, rest = order[0], order[1:]
        kept.append(best)
        top_left = torch.maximum(dets[best, :2], dets[rest, :2])
        bottom_right = torch.minimum(dets[best, 2:], dets[rest, 2:])
        shared = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64, device=dets.device)


def _no_quantized_nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Refuse: torchvision wants the name to exist, and nothing here detects with quantized tensors."""
    message = f"no nms of quantized boxes here: {tuple(dets.shape)}, {tuple(scores.shape)}, {iou_threshold}"
    raise NotImplementedError(message)
