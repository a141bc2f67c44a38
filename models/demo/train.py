"""The recipe behind the two demo versions: render, train YOLO26n from scratch, measure, slim down.

    python -m models.demo.train --out DIR --version 1
    python -m models.demo.train --out DIR --version 2

Version 1 starts from random weights. Version 2 continues from version 1 with scenes that version 1 never saw. Both are
measured on the same held-out scenes. DIR receives checkout-N.pt, metrics.json and everything Ultralytics writes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.demo import MODEL_NAME, weights_path
from models.demo.dataset import write_dataset

_log = logging.getLogger(__name__)

_IMAGE_SIZE = 320
_INTEGRATIONS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
_KEPT_ARGS = (
    "task",
    "mode",
    "epochs",
    "batch",
    "imgsz",
    "optimizer",
    "lr0",
    "lrf",
    "seed",
    "deterministic",
    "single_cls",
)


@dataclass(frozen=True)
class Recipe:
    """How one version is trained.

    Attributes:
        scenes: number of rendered training scenes.
        seed: which set of scenes, and the seed of the training itself.
        epochs: passes over the scenes.
        learning_rate: AdamW's first learning rate.
        start: version to continue from, None for random weights.
    """

    scenes: int
    seed: int
    epochs: int
    learning_rate: float
    start: int | None


RECIPES: dict[int, Recipe] = {
    1: Recipe(scenes=900, seed=1, epochs=8, learning_rate=0.0015, start=None),
    2: Recipe(scenes=1300, seed=2, epochs=8, learning_rate=0.0012, start=1),
}


def seal_process(out: Path, threads: int) -> None:
    """Keep Ultralytics in this process from installing, downloading, reporting or writing outside `out`.

    Call it before anything imports ultralytics: most of it is read from the environment at import.

    Args:
        out: folder that receives its settings.
        threads: torch threads, >= 1.
    """
    settings = out / "settings"
    settings.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": str(settings),
        "MPLCONFIGDIR": str(settings),
    }
    import torch  # noqa: PLC0415 - models.demo stays light for those who only read its paths
    from ultralytics import settings as ultralytics_settings  # noqa: PLC0415 - it reads the environment above

    from models.torchvision_ops import ensure_torchvision_ops  # noqa: PLC0415 - it imports torch

    off: dict[str, bool | str] = dict.fromkeys(("sync", *_INTEGRATIONS), False)
    places = {"runs_dir": str(out / "runs"), "weights_dir": str(out / "weights"), "datasets_dir": str(out / "datasets")}
    ultralytics_settings.update(off | places)
    torch.set_num_threads(threads)
    ensure_torchvision_ops()


def train(recipe: Recipe, version: int, listing: Path, out: Path, start: Path | None) -> Path:
    """Train one version.

    Args:
        recipe: how.
        version: number of the version, for names.
        listing: data.yaml of the scenes.
        out: folder that receives the run.
        start: weights to continue from, None for random weights.

    Returns:
        The last checkpoint as Ultralytics leaves it.
    """
    from ultralytics import YOLO  # noqa: PLC0415 - only after seal_process

    model = YOLO("yolo26n.yaml") if start is None else YOLO(str(start))
    batch = 8
    model.train(
        data=str(listing),
        epochs=recipe.epochs,
        imgsz=_IMAGE_SIZE,
        batch=batch,
        # Ultralytics gathers gradients up to the nominal batch: equal to the batch, every batch is a step.
        nbs=batch,
        optimizer="AdamW",
        lr0=recipe.learning_rate,
        lrf=0.02,
        cos_lr=True,
        warmup_epochs=0.5,
        warmup_bias_lr=0.0,
        # The renderer varies its scenes more than augmentation would, and mosaics would show trays that never occur.
        mosaic=0.0,
        translate=0.08,
        scale=0.15,
        flipud=0.5,
        seed=recipe.seed,
        device="cpu",
        amp=False,
        workers=0,
        val=False,
        plots=False,
        project=str(out / "runs"),
        name=f"train-{version}",
        exist_ok=True,
    )
    return out / "runs" / f"train-{version}" / "weights" / "last.pt"


def slim(checkpoint: Path, target: Path) -> None:
    """Keep only what the detector needs: one head, half-precision weights, training arguments without any path.

    YOLO26 trains two heads; after so short a training the one-to-one head, which learns without reaching the backbone,
    is far behind the one-to-many head, so the demo keeps the latter and is served with non-maximum suppression.

    Args:
        checkpoint: a checkpoint of our own training; it is unpickled, so never one from elsewhere.
        target: file to write.
    """
    import torch  # noqa: PLC0415 - see seal_process
    from ultralytics.utils.torch_utils import strip_optimizer  # noqa: PLC0415 - only after seal_process

    strip_optimizer(str(checkpoint), str(target))
    content: dict[str, Any] = torch.load(target, map_location="cpu", weights_only=False)
    arguments = {key: content["train_args"][key] for key in _KEPT_ARGS} | {"data": "data.yaml", "model": "yolo26n.yaml"}
    content["model"].args = dict(arguments)
    keep_one_head(content["model"])
    vars(content["model"]).pop("pt_path", None)  # where training continued from, on the machine that trained
    kept = {key: content[key] for key in ("model", "epoch", "date", "version", "license", "docs")}
    torch.save(kept | {"train_args": arguments}, target)


def keep_one_head(model: Any) -> None:
    """Remove the one-to-one head of a YOLO26 model, if it has one; ``model`` is Ultralytics' DetectionModel."""
    head = model.model[-1]
    for name in ("one2one_cv2", "one2one_cv3"):
        if hasattr(head, name):
            delattr(head, name)
    model.end2end = False
    model.yaml["end2end"] = False


def measure(weights: Path, listing: Path, out: Path) -> dict[str, float]:
    """Evaluate weights on the held-out scenes.

    Args:
        weights: a .pt file of our own.
        listing: data.yaml of the scenes.
        out: folder for what Ultralytics writes.

    Returns:
        `map50_95` and `map50`, each 0-1.
    """
    from ultralytics import YOLO  # noqa: PLC0415 - only after seal_process

    found = YOLO(str(weights)).val(
        data=str(listing),
        imgsz=_IMAGE_SIZE,
        batch=8,
        device="cpu",
        workers=0,
        plots=False,
        project=str(out / "runs"),
        name=f"val-{weights.stem}",
        exist_ok=True,
    )
    return {"map50_95": round(float(found.box.map), 4), "map50": round(float(found.box.map50), 4)}


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description="Train a version of the demo detector from rendered trays.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, metrics, scenes and runs")
    parser.add_argument("--version", type=int, choices=sorted(RECIPES), default=1)
    parser.add_argument("--threads", type=int, default=max(1, os.cpu_count() or 1), help="torch threads")
    choice = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    out: Path = choice.out.resolve()
    recipe = RECIPES[choice.version]
    seal_process(out, choice.threads)
    listing = write_dataset(out / f"scenes-{recipe.seed}", scenes=recipe.scenes, seed=recipe.seed, size=_IMAGE_SIZE)
    _log.info("rendered %d scenes", recipe.scenes)
    start = None
    if recipe.start is not None:
        # The checkpoint as trained still has both heads; what the package holds is only what is served.
        fresh = out / "runs" / f"train-{recipe.start}" / "weights" / "last.pt"
        start = fresh if fresh.exists() else weights_path(recipe.start)
    target = out / f"{MODEL_NAME}-{choice.version}.pt"
    slim(train(recipe, choice.version, listing, out, start), target)
    scores = measure(target, listing, out)
    entry = scores | {
        "epochs": recipe.epochs,
        "scenes": recipe.scenes,
        "imgsz": _IMAGE_SIZE,
        "seed": recipe.seed,
        "date": datetime.now(UTC).date().isoformat(),
    }
    record = out / "metrics.json"
    entries = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    entries[str(choice.version)] = entry
    record.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    _log.info("version %d: %s", choice.version, entry)


if __name__ == "__main__":
    main()
