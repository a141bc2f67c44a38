"""Choose the runtime for this machine."""

from __future__ import annotations

import importlib.util
import platform
from typing import TYPE_CHECKING

from models.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from models.engine.backends.backend import Backend

X86 = frozenset({"x86_64", "amd64"})
NAMES = ("auto", "openvino", "onnxruntime", "torch", "fake")
CPU_PRECISIONS = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",), "torch": ("fp32",)}
GPU_PRECISIONS = {"onnxruntime": ("fp32", "fp16"), "torch": ("fp32", "fp16")}


def select_backend(
    name: str,
    *,
    precision: str,
    threads: int,
    gpu: bool,
    gpu_share: float = 1.0,
    engines: Path | None = None,
    fake_service_s: float = 0.0,
) -> Backend:
    """Return the backend ``name``.

    Args:
        name: ``auto``, ``openvino``, ``onnxruntime``, ``torch`` or ``fake``. ``auto`` takes OpenVINO on x86 CPUs and
            ONNX Runtime elsewhere and on GPUs.
        precision: ``auto``, ``fp32``, ``bf16`` (OpenVINO on a CPU) or ``fp16`` (on a GPU).
        threads: CPU threads the runtime may use, >= 1.
        gpu: whether a GPU is reserved for this replica.
        gpu_share: GPUs that are reserved, more than 0; below 1 the replica keeps to that part of one's memory.
        engines: folder for engines that TensorRT has built and networks that OpenVINO has compiled; None makes them
            for every process.
        fake_service_s: seconds that a call of the fake backend takes, >= 0.

    Raises:
        SettingsError: no such backend, its package is missing, or the combination is impossible.

    """
    if name == "auto":
        name = "openvino" if not gpu and platform.machine().lower() in X86 and _installed("openvino") else "onnxruntime"
    if name == "fake":
        from models.engine.backends.fake import FakeBackend  # noqa: PLC0415 - a service loads only the runtime it uses

        return FakeBackend(fake_service_s, recalls=True, remembered=0)
    _refuse_impossible(name, precision, gpu=gpu)
    if not _installed(name):
        extra = "gpu" if gpu else "cpu"
        msg = f"backend={name} is not installed: install steelyard[{extra}], or choose another backend"
        raise SettingsError(msg)
    if name == "openvino":
        from models.engine.backends.openvino import OpenVinoBackend  # noqa: PLC0415 - as above

        return OpenVinoBackend(precision=precision, threads=threads, compiled=engines)
    if name == "torch":
        from models.engine.backends.torch_runtime import TorchBackend  # noqa: PLC0415 - as above

        return TorchBackend(threads=threads, precision=precision, gpu=gpu, gpu_share=gpu_share)
    from models.engine.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415 - as above

    return OnnxRuntimeBackend(threads=threads, precision=precision, gpu=gpu, gpu_share=gpu_share, engines=engines)


def _refuse_impossible(name: str, precision: str, *, gpu: bool) -> None:
    if name not in NAMES:
        msg = f"backend={name} does not exist: choose {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        raise SettingsError(msg)
    legal = (GPU_PRECISIONS if gpu else CPU_PRECISIONS).get(name)
    if legal is None:
        msg = f"backend={name} serves on CPUs only: set gpus to 0, or choose onnxruntime or torch"
        raise SettingsError(msg)
    if precision not in {"auto", *legal}:
        where = "a GPU" if gpu else "a CPU"
        msg = (
            f"backend={name} computes in {' or '.join(legal)} on {where}: set precision to auto or {' or '.join(legal)}"
        )
        raise SettingsError(msg)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
