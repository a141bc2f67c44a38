"""Ultralytics' own validation of weights, and answers of anybody scored against the labels that it reads.

Both score the same labels: those that Ultralytics' data set reads, duplicates removed as it removes them.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from models.torchvision_ops import ensure_torchvision_ops  # noqa: E402 - found through the lines above as a script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from models.types import Detections

CONF = 0.001
IOU = 0.7
MAX_DET = 300
"""What ``val`` uses by default, and what a service must be asked for to be compared with it."""


class Habit(enum.Enum):
    """In what ``val`` differs from ``YOLO.predict``: no work of the weights."""

    BORDER = "half a stride or more of grey around every tensor"
    UNCUT = "boxes that reach beyond the picture are scored uncut"
    EVERY_CLASS = "after an NMS head a box stands for every class above the threshold, not its best alone"


@dataclass(frozen=True, slots=True)
class Score:
    """Mean average precision in points, 0 to 100: over IoU 0.50 to 0.95, and at 0.50."""

    map50_95: float
    map50: float


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """One image's labels. shape: (height, width) in pixels. corners: float32 (n, 4) in pixels. classes: int (n,)."""

    shape: tuple[int, int]
    corners: NDArray[np.float32]
    classes: NDArray[np.int32]


class Ultralytics:
    """One set of weights and one labelled set of images, through Ultralytics."""

    def __init__(self, weights: Path, images: Sequence[Path]) -> None:
        """Load nothing yet.

        Args:
            weights: a ``.pt`` file.
            images: pictures in a folder ``images`` beside a folder ``labels`` with a YOLO text file for each.

        Raises ValueError, in one sentence, where labels are missing altogether.
        """
        if not any(_label(image).is_file() for image in images):
            msg = "no picture has labels: give a folder 'images' that stands beside a folder 'labels'"
            raise ValueError(msg)
        self._weights = weights
        self._images = list(images)
        self._truth: dict[str, Truth] = {}
        self.end2end = False
        """Whether the weights hold a one-to-one head, which is then what serves and what is compared."""
        _prepare_process()

    def val(self, habits: frozenset[Habit] = frozenset(Habit)) -> Score:
        """Return what ``val(rect=True, batch=1, conf=0.001, iou=0.7, max_det=300)`` says in fp32, with ``habits`` only.

        ``YOLO.val`` of 8.4.190 takes the one-to-many head unless told ``nms=False``; the head that a service uses is
        named here. Without any habit it is ``val`` on what ``YOLO.predict`` answers, and so on what a service does.
        """
        from ultralytics.data.dataset import YOLODataset  # noqa: PLC0415 - takes seconds
        from ultralytics.models.yolo.detect import DetectionValidator  # noqa: PLC0415 - likewise
        from ultralytics.utils.nms import non_max_suppression  # noqa: PLC0415 - likewise

        class Validator(DetectionValidator):  # type: ignore[misc]
            """``val`` with nothing but the habits asked for."""

            def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
                if Habit.BORDER in habits:
                    return super().build_dataset(img_path, mode, batch)
                return YOLODataset(
                    img_path=img_path,
                    imgsz=self.args.imgsz,
                    batch_size=batch,
                    augment=False,
                    hyp=self.args,
                    rect=True,
                    stride=int(self.stride),
                    pad=0.0,
                    task="detect",
                    data=self.data,
                )

            def postprocess(self, preds: Any) -> list[dict[str, Any]]:
                if Habit.EVERY_CLASS in habits:
                    return super().postprocess(preds)  # type: ignore[no-any-return]
                options = self.args
                found = non_max_suppression(
                    preds, options.conf, options.iou, max_det=options.max_det, end2end=self.end2end
                )
                return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in found]

            def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
                if Habit.UNCUT not in habits:
                    for pred, shape, (gain, (left, top)) in zip(
                        preds, batch["ori_shape"], batch["ratio_pad"], strict=True
                    ):
                        pred["bboxes"][:, 0::2].clamp_(left, left + shape[1] * gain[1])
                        pred["bboxes"][:, 1::2].clamp_(top, top + shape[0] * gain[0])
                super().update_metrics(preds, batch)

        with tempfile.TemporaryDirectory(prefix="steelyard-val-") as folder:
            model, self.end2end = _load(self._weights)
            validator = Validator(
                save_dir=Path(folder) / "run",
                args={
                    "data": str(self._data_set(Path(folder), model.names)),
                    "imgsz": model.args["imgsz"],
                    "rect": True,
                    "batch": 1,
                    "conf": CONF,
                    "iou": IOU,
                    "max_det": MAX_DET,
                    "nms": False if self.end2end else None,
                    "device": "cpu",
                    "plots": False,
                    "verbose": False,
                },
            )
            stats = validator(model=model)
            data = validator.dataloader.dataset
            self._truth = {
                Path(label["im_file"]).name: _truth(label, data.load_image(number)[1])
                for number, label in enumerate(data.labels)
            }
        return Score(100 * float(stats["metrics/mAP50-95(B)"]), 100 * float(stats["metrics/mAP50(B)"]))

    def score(self, answers: Mapping[str, Detections]) -> Score:
        """Return the score of ``answers``, by file name, against the labels that ``val`` has read before.

        Raises ValueError where an answer is missing or an image is unknown, ConversionError where nothing is labelled.
        """
        if set(answers) != set(self._truth):
            msg = f"{len(answers)} images were answered and {len(self._truth)} are labelled; both must be the same"
            raise ValueError(msg)
        return score(answers, self._truth)

    def _data_set(self, folder: Path, names: Mapping[int, str]) -> Path:
        """Write a data set of links, so that Ultralytics' label cache stays out of the user's folder."""
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        links = []
        for image in self._images:
            links.append(folder / "images" / image.name)
            links[-1].symlink_to(image.absolute())
            if _label(image).is_file():
                (folder / "labels" / f"{image.stem}.txt").symlink_to(_label(image).absolute())
        listing = folder / "val.txt"
        listing.write_text("".join(f"{link}\n" for link in links), encoding="utf-8")
        found = folder / "data.yaml"
        content = {"path": str(folder), "train": listing.name, "val": listing.name, "names": dict(names)}
        found.write_text(yaml.safe_dump(content), encoding="utf-8")
        return found


def score(answers: Mapping[str, Detections], truth: Mapping[str, Truth]) -> Score:
    """Return the score of ``answers`` against ``truth``, scored as ``steelyard evaluate`` scores.

    Raises ConversionError where nothing is labelled.
    """
    _prepare_process()
    from models.weights.validation import Scorer  # noqa: PLC0415 - not before the process is prepared

    highest = max(int(each.classes.max(initial=0)) for each in (*answers.values(), *truth.values()))
    # It writes below the working folder, which is a scratch one where it runs otherwise.
    with tempfile.TemporaryDirectory(prefix="steelyard-val-") as folder, contextlib.chdir(folder):
        scorer = Scorer(tuple(map(str, range(highest + 1))))
        for name, wanted in truth.items():
            scorer.add(name, answers[name], wanted.classes, wanted.corners)
        map50_95, map50 = scorer.score()
    return Score(100 * map50_95, 100 * map50)


def _prepare_process() -> None:
    # Read by ultralytics when it is imported: nothing is fetched or installed, no code inside a checkpoint runs.
    wanted = {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
        "ULTRALYTICS_SAFE_LOAD": "1",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    ensure_torchvision_ops()


def _load(weights: Path) -> tuple[Any, bool]:
    """Return the network in fp32, fresh, as validation changes it, and whether it has a one-to-one head."""
    from ultralytics import YOLO  # noqa: PLC0415 - takes seconds

    model = YOLO(weights.absolute()).model.float()
    if isinstance(model.args, dict):
        model.args.setdefault("imgsz", 640)
    return model, getattr(model.model[-1], "one2one_cv2", None) is not None


def _label(image: Path) -> Path:
    return image.parent.parent / "labels" / f"{image.stem}.txt"


def _truth(label: Mapping[str, Any], shape: tuple[int, int]) -> Truth:
    height, width = shape
    centre, size = np.split(np.asarray(label["bboxes"], np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate((centre - size / 2, centre + size / 2), axis=1) * (width, height, width, height)
    return Truth((height, width), corners.astype(np.float32), np.asarray(label["cls"], np.int32).reshape(-1))
