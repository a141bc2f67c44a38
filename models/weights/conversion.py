"""The sandboxed child of a registration: one weights file in, the files of a release out.

``sandbox.run_sandboxed`` starts it with the request ``{"source": path, "format": "pt"|"onnx", "pictures": [paths],
"output": folder}``; nobody else imports it.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import ConversionError
from models.weights import expectations, onnx_graph
from models.weights.manifest import GOLDEN_DIR, MODEL_YAML, ONNX, SAFETENSORS
from models.weights.onnx_network import OnnxNetwork, contract_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.types import Contract
    from models.weights.expectations import Network

_LIBRARIES = {
    "pt": ("torch", "ultralytics-opencv-headless", "onnx", "onnxslim", "onnxruntime", "safetensors"),
    "onnx": ("onnx", "onnxruntime"),
}


def main(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Convert the request's source into its output folder and describe the result. Raises ConversionError."""
    progress("load", 0.05)
    output = Path(request["output"])
    if request["format"] == "pt":
        model, reference, contract, rebuild = _from_checkpoint(Path(request["source"]), output, progress)
    else:
        model, reference, contract, rebuild = _from_onnx(Path(request["source"]), Path(request["pictures"][0]))
    progress("parity", 0.6)

    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    onnx_graph.wrap(
        model,
        {
            "names": str(dict(enumerate(contract.names))),
            "task": contract.task,
            "stride": str(contract.stride),
            "imgsz": str([contract.imgsz, contract.imgsz]),
            "end2end": str(contract.head == "end2end"),
        },
    )
    graph = _smallest_shape_works(model, contract)
    scenes = expectations.look([Path(path) for path in request["pictures"]], reference, contract)
    parity = expectations.check_parity(scenes, graph, contract, batches=not batch)
    progress("golden", 0.85)
    (output / ONNX).write_bytes(model.SerializeToString())
    golden = []
    (output / GOLDEN_DIR).mkdir()
    for index, scene in enumerate(expectations.choose_golden(scenes)):
        file = f"{GOLDEN_DIR}{expectations.file_name(index, scene)}"
        (output / file).write_bytes(scene.data)
        golden.append(expectations.golden_entry(scene, file))
    return {
        "names": list(contract.names),
        "stride": contract.stride,
        "imgsz": contract.imgsz,
        "head": contract.head,
        "dynamic": contract.dynamic,
        "golden": golden,
        "libraries": _versions(request["format"]),
        "parity": {
            "reference": "torch fp32" if request["format"] == "pt" else "the source graph in ONNX Runtime",
            "images": parity.images,
            "boxes": parity.boxes,
            "max_pixel": parity.max_pixel,
            "max_score": parity.max_score,
            "rebuild": rebuild,
            "network": request["network"],
        },
    }


def _from_checkpoint(
    source: Path, output: Path, progress: Callable[[str, float], None]
) -> tuple[Any, Network, Contract, str]:
    from models.weights import checkpoint as checkpoints  # noqa: PLC0415 - brings torch, which a graph does not need

    checkpoint = checkpoints.load(source)
    progress("export", 0.2)
    model = onnx_graph.load_graph(checkpoints.export(checkpoint, source.parent))
    progress("rebuild", 0.5)
    rebuild = checkpoints.save_rebuildable(checkpoint, output / SAFETENSORS, output / MODEL_YAML)
    return model, checkpoint, checkpoint.contract, rebuild


def _from_onnx(source: Path, picture: Path) -> tuple[Any, Network, Contract, str]:

    data = source.read_bytes()
    model = onnx_graph.load_graph(data)
    onnx_graph.refuse_non_finite(model)
    info = onnx_graph.read_export(model)
    reference = OnnxNetwork(data, wrapped=False)
    return model, reference, contract_of(reference, info, picture), "none: the source is a graph"


def _smallest_shape_works(model: Any, contract: Contract) -> Network:
    """Return the graph as a network, mended where it fails on the longest, thinnest image. Raises ConversionError."""
    network = OnnxNetwork(model.SerializeToString(), wrapped=True)
    if not contract.dynamic:
        return network
    thin: NDArray[np.uint8] = np.zeros((1, contract.stride, contract.imgsz, 3), np.uint8)
    try:
        network(thin)
    except ConversionError:
        if not onnx_graph.soften_top_k(model):
            raise
        network = OnnxNetwork(model.SerializeToString(), wrapped=True)
        network(thin)
    return network


def _versions(kind: str) -> dict[str, str]:
    found = {}
    for name in _LIBRARIES[kind]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
