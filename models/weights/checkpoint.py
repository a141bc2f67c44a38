"""Ultralytics checkpoints: restricted loading, export, rebuild. Only the sandboxed child imports this module."""

from __future__ import annotations

import copy
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from models.engine.backends import torch_network
from models.errors import ConversionError, ReleaseRejectedError
from models.types import MAX_DETECTIONS, Contract
from models.weights.onnx_graph import image_size, names_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RGB = 3
PROBE_SEED = 0
_UNRESTRICTED = "Restricted loading is not in force here, so the file was not opened; reinstall Steelyard's packages."
_TRIPPED: list[str] = []


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A detector in torch fp32, in evaluation mode, its end-to-end head selected where it has one."""

    model: Any
    contract: Contract

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network on uint8 (n, h, w, 3) RGB; returns float32 as the release's head promises."""
        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch)).permute(0, 3, 1, 2).contiguous().float() / 255
            output: NDArray[np.float32] = self.model(images)[0].numpy()
        return output


def load(path: Path) -> Checkpoint:
    """Load a ``.pt`` with Ultralytics' restricted loader, which runs no code of the file. Raises ConversionError."""
    model = _restricted_load(path)
    from ultralytics.nn.modules.head import Detect  # noqa: PLC0415 - slow, and only after the loader is known restricted
    from ultralytics.nn.tasks import DetectionModel  # noqa: PLC0415 - likewise

    task = str(getattr(model, "task", "unknown"))
    if task != "detect":
        _refuse(f"The model's task is {task[:20]}, not detection; give a detector.")
    head = model.model[-1] if isinstance(model, DetectionModel) else None
    if type(model) is not DetectionModel or not isinstance(head, Detect):
        _refuse(f"The model is a {type(model).__name__[:40]}, a kind of detector that is not served yet.")
    if model.yaml.get("channels", RGB) != RGB:
        _refuse(f"The model takes {model.yaml['channels']} channels; only three (RGB) are served.")
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            _refuse("The weights hold NaN or infinity: training failed or the file is damaged. Use another checkpoint.")
    names = names_of(model.names)
    if len(names) != head.nc:
        _refuse(f"The model names {len(names)} classes and predicts {head.nc}; train it again.")
    end2end = getattr(head, "one2one_cv2", None) is not None
    select_head(model, end2end=end2end)
    stride = int(max(model.stride))
    contract = Contract(
        task="detect",
        names=names,
        stride=stride,
        imgsz=image_size(model.args.get("imgsz"), stride),
        head="end2end" if end2end else "raw",
    )
    return Checkpoint(model, contract)


def select_head(model: Any, *, end2end: bool) -> None:
    """Make the model answer with its end-to-end head or its raw one, and with as many boxes as a release may."""
    head = model.model[-1]
    head.max_det, head.agnostic_nms = MAX_DETECTIONS, False
    if getattr(head, "one2one_cv2", None) is not None:
        model.end2end = end2end


def export(checkpoint: Checkpoint, folder: Path) -> bytes:
    """Export to one ONNX file with dynamic batch, height and width, without NMS; returns its bytes.

    ``nms=False`` selects the end-to-end head where there is one and leaves the raw head otherwise.
    """
    from ultralytics.engine.exporter import Exporter  # noqa: PLC0415 - see load

    model = copy.deepcopy(checkpoint.model)
    model.pt_path = str(folder / "export.pt")  # the exporter writes beside it
    exporter = Exporter(
        overrides={
            "format": "onnx",
            "dynamic": True,
            "nms": False,
            "simplify": False,
            "batch": 1,
            "imgsz": checkpoint.contract.imgsz,
            "max_det": MAX_DETECTIONS,
            "device": "cpu",
        }
    )
    return _slim(Path(exporter(model=model)).read_bytes())


def save_rebuildable(checkpoint: Checkpoint, weights: Path, architecture: Path) -> str:
    """Write safetensors and model yaml, prove that they rebuild the model bit for bit; returns the finding.

    ``bit-equal`` means both files stand. Otherwise the text says why and neither is left: a yaml does not describe an
    architecture fully (YOLOv9 checkpoints of 8.3 carry a flag of the head that today's parser sets differently).
    """
    try:
        tensors = {name: _shrink(tensor) for name, tensor in checkpoint.model.state_dict().items()}
        save_file(tensors, weights)
        spec = {key: value for key, value in checkpoint.model.yaml.items() if key != "yaml_file"}
        spec["nc"] = len(checkpoint.contract.names)
        architecture.write_text(yaml.safe_dump(spec, sort_keys=True))
        finding = _compare_rebuilt(checkpoint, weights, architecture)
    except (
        ReleaseRejectedError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        yaml.YAMLError,
    ) as error:
        finding = f"not rebuildable: {type(error).__name__}"
    if finding != "bit-equal":
        weights.unlink(missing_ok=True)
        architecture.unlink(missing_ok=True)
    return finding


def _restricted_load(path: Path) -> Any:
    from ultralytics import utils  # noqa: PLC0415 - see load
    from ultralytics.nn import tasks  # noqa: PLC0415 - see load

    if not utils.SAFE_LOAD or not tasks._SafeLoad.SUPPORTED or utils.AUTOINSTALL:  # noqa: SLF001 - no public way to ask
        _refuse(_UNRESTRICTED)
    _spring_tripwire(tasks, path.parent)
    _check_sums(path)
    try:
        model, checkpoint = tasks.load_checkpoint(path)
    except MemoryError:
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, (ModuleNotFoundError, AttributeError, ImportError)) or "outside the supported" in text:
            msg = (
                "The file is not a detector's checkpoint: it refers to code or types that are not loaded for safety. "
                "Save it with Ultralytics' model.save()."
            )
        else:
            msg = "The file is not a readable checkpoint: it is empty, truncated or damaged. Copy or export it again."
        raise ConversionError(msg) from error
    if isinstance(checkpoint, dict) and checkpoint.get("modelopt"):
        _refuse("The checkpoint was trained for quantization; export it to ONNX first and register that.")
    return model


class _Tripwire:
    """Notes that it was unpickled, which a restricted loader refuses to do."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _trip, ()


def _trip() -> None:
    _TRIPPED.append("unpickled")


def _spring_tripwire(tasks: Any, scratch: Path) -> None:
    """Refuse to go on unless the loader, as it is at this moment, refuses a checkpoint that runs code of ours."""
    wire = scratch / "tripwire.pt"
    torch.save({"model": _Tripwire()}, wire)
    try:
        tasks.torch_safe_load(wire)
    except TypeError:  # as the restricted loader tells of a type outside its list
        refused = True
    else:
        refused = False
    finally:
        wire.unlink(missing_ok=True)
    if _TRIPPED or not refused:
        _refuse(_UNRESTRICTED)


def _check_sums(path: Path) -> None:
    """Refuse an archive of which a byte has changed: torch reads tensors without looking at the archive's CRC-32."""
    if not zipfile.is_zipfile(path):
        return
    damaged = "The file is damaged: its contents do not match their own checksums. Copy it again."
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConversionError(damaged) from error
    if wrong is not None:
        _refuse(damaged)


def _slim(data: bytes) -> bytes:
    """Fold constants with onnxslim; a failure leaves the graph as it is, for parity is proved afterwards either way."""
    import onnx  # noqa: PLC0415 - see load
    import onnxslim  # noqa: PLC0415 - see load

    model = onnx.load_model_from_string(data)
    try:
        slim = onnxslim.slim(model)
    except Exception:  # noqa: BLE001 - an optimiser of another project; the unslimmed graph is correct
        return data
    return data if slim is None else bytes(slim.SerializeToString())


def _shrink(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in fp16 where that loses nothing (checkpoints are stored so), else as it is; a copy."""
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half().contiguous()
    return tensor.clone().contiguous()


def _compare_rebuilt(checkpoint: Checkpoint, weights: Path, architecture: Path) -> str:
    files = {
        name: np.frombuffer(path.read_bytes(), np.uint8)
        for name, path in ((torch_network.WEIGHTS, weights), (torch_network.ARCHITECTURE, architecture))
    }
    rebuilt = torch_network.rebuild(files, checkpoint.contract, fold=False)
    side = checkpoint.contract.stride * 8
    probe = torch.rand((1, RGB, side, side), generator=torch.Generator().manual_seed(PROBE_SEED))
    end2end = checkpoint.contract.head == "end2end"
    try:
        with torch.inference_mode():
            for choice in (False, True) if end2end else (False,):
                select_head(checkpoint.model, end2end=choice)
                select_head(rebuilt, end2end=choice)
                if not torch.equal(checkpoint.model(probe)[0], rebuilt(probe)[0]):
                    return "not bit-equal: the yaml does not describe the whole architecture"
    finally:
        select_head(checkpoint.model, end2end=end2end)
    return "bit-equal"


def _refuse(message: str) -> NoReturn:
    raise ConversionError(message)
