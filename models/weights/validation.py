"""The sandboxed child of an evaluation: a release's network and labelled images in, mean average precision out.

Every image goes the way of a request: the service's decoding, letterbox, network and postprocessing, asked for all
boxes. They are matched with the labels and integrated by the code behind Ultralytics' ``val`` (8.4.190) at its own
settings, conf 0.001, IoU 0.7, 300 boxes. ``val`` itself would score other boxes than a client gets: it puts a grey
border around every tensor, leaves boxes uncut at the image's edge, and lets one stand for several classes.

``sandbox.run_sandboxed`` starts it with the request ``{"onnx": path, "contract": {...}, "samples": [[image, label or
null], ...]}``; nobody else imports it.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine.decode import decode
from models.engine.postprocess import postprocess
from models.engine.preprocess import letterbox
from models.errors import BackendError, ConversionError, EvaluationError, InvalidImageError
from models.types import Contract, Detections, Thresholds
from models.weights.labels import read_labels
from models.weights.onnx_network import OnnxNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.weights.expectations import Network

EVERYTHING = Thresholds(conf=0.001, iou=0.7, max_det=300)
"""What ``val`` asks for by default."""


def main(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Evaluate the request's network on its samples. Raises ConversionError, the sandbox's word for a refusal."""
    progress("load", 0.0)
    contract = Contract(**request["contract"] | {"names": tuple(request["contract"]["names"])})
    samples = request["samples"]
    try:
        network = OnnxNetwork(Path(request["onnx"]).read_bytes(), wrapped=True)
        scorer = Scorer(contract.names)
        for number, (image, label) in enumerate(samples):
            _show(Path(image), None if label is None else Path(label), network, contract, scorer)
            progress("evaluate", (number + 1) / len(samples))
    except (EvaluationError, BackendError) as error:
        raise ConversionError(str(error)) from error
    map50_95, map50 = scorer.score()
    return {
        "map50_95": map50_95,
        "map50": map50,
        "boxes": scorer.boxes,
        "method": ", ".join(
            f"{name} {metadata.version(distribution)}"
            for name, distribution in (("ultralytics", "ultralytics-opencv-headless"), ("onnxruntime", "onnxruntime"))
        ),
    }


class Scorer:
    """Ultralytics' matching and integration, fed with boxes of anybody in pixels of the original image."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Start empty; imports torch and ultralytics, which takes seconds."""
        from models.torchvision_ops import ensure_torchvision_ops  # noqa: PLC0415 - it imports torch

        ensure_torchvision_ops()
        from ultralytics.models.yolo.detect import DetectionValidator  # noqa: PLC0415 - needs the operators
        from ultralytics.utils.metrics import DetMetrics  # noqa: PLC0415 - likewise

        self._folder = Path.cwd() / "validator"
        self._matcher = DetectionValidator(save_dir=self._folder)
        self._metrics = DetMetrics(dict(enumerate(names)))
        self.boxes = 0
        """Labelled boxes so far."""

    def add(self, name: str, found: Detections, classes: NDArray[np.int32], corners: NDArray[np.float32]) -> None:
        """Take one image's boxes, ``found`` sorted by falling score.

        Args:
            name: of the image.
            found: what the network sees.
            classes: of the labels, int32 (n,).
            corners: of the labels, float32 (n, 4), x1 y1 x2 y2 in pixels.

        """
        import torch  # noqa: PLC0415 - see __init__

        matches = self._matcher._process_batch(  # noqa: SLF001 - the point is to use the very same code
            {"bboxes": torch.from_numpy(found.boxes), "cls": torch.from_numpy(found.classes).float()},
            {"bboxes": torch.from_numpy(corners), "cls": torch.from_numpy(classes).float()},
        )
        self._metrics.update_stats(
            {
                **matches,
                "conf": found.scores,
                "pred_cls": found.classes.astype(float),
                "target_cls": classes.astype(float),
                "target_img": np.unique(classes).astype(float),
                "im_name": name,
            }
        )
        self.boxes += len(classes)

    def score(self) -> tuple[float, float]:
        """Return mAP50-95 and mAP50, each 0 to 1. Raises ConversionError where nothing was labelled."""
        if not self.boxes:
            msg = "The data labels no box at all, so nothing can be evaluated; give labelled data."
            raise ConversionError(msg)
        self._metrics.process(save_dir=self._folder)
        return float(self._metrics.box.map), float(self._metrics.box.map50)


def _show(image: Path, label: Path | None, network: Network, contract: Contract, scorer: Scorer) -> None:
    classes, shares = read_labels(label, len(contract.names))
    try:
        picture = decode(image.read_bytes())
    except (OSError, InvalidImageError) as error:
        msg = f"The image {image.name} cannot be read ({error}); mend the data and evaluate again."
        raise EvaluationError(msg) from error
    tensor, placement = letterbox(picture, contract)
    found = postprocess(network(tensor[None])[0], placement, contract, EVERYTHING)
    height, width = picture.shape[:2]
    middle, half = shares[:, :2], shares[:, 2:] / 2
    corners = np.concatenate((middle - half, middle + half), axis=1) * (width, height, width, height)
    scorer.add(image.name, found, classes, corners.astype(np.float32))
