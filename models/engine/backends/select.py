"""Choose the runtime for this machine."""

from __future__ import annotations

import importlib.util
import platform
from typing import TYPE_CHECKING

from models.errors import SettingsError

if TYPE_CHECKING:
    from models.engine.backends.backend import Backend

X86 = frozenset({"x86_64", "amd64"})


def select_backend(name: str, *, precision: str, threads: int, gpu: bool) -> Backend:
    """Return the backend ``name``.

    Args:
        name: ``auto``, ``openvino``, ``onnxruntime`` or ``fake``. ``auto`` takes OpenVINO on x86 CPUs and ONNX Runtime
            elsewhere and on GPUs.
        precision: ``auto``, ``fp32`` or ``bf16``.
        threads: CPU threads the runtime may use, >= 1.
        gpu: whether a GPU is reserved for this replica.

    Raises:
        SettingsError: no such backend, its package is missing, or the combination is impossible.

    """
    if name == "auto":
        name = "openvino" if not gpu and platform.machine().lower() in X86 and _installed("openvino") else "onnxruntime"
    if name == "fake":
        from models.engine.backends.fake import FakeBackend  # noqa: PLC0415 - a service loads only the runtime it uses

        return FakeBackend()
    if name not in {"openvino", "onnxruntime"}:
        msg = f"backend={name} does not exist: choose auto, openvino, onnxruntime or fake"
        raise SettingsError(msg)
    if not _installed(name):
        extra = "gpu" if gpu else "cpu"
        msg = f"backend={name} is not installed: install steelyard[{extra}], or choose another backend"
        raise SettingsError(msg)
    if name == "openvino":
        if gpu:
            msg = "backend=openvino serves on CPUs only: set gpus to 0, or choose onnxruntime"
            raise SettingsError(msg)
        from models.engine.backends.openvino import OpenVinoBackend  # noqa: PLC0415 - as above

        return OpenVinoBackend(precision=precision, threads=threads)
    if precision == "bf16":
        msg = "backend=onnxruntime computes in fp32: set precision to auto or fp32, or choose openvino"
        raise SettingsError(msg)
    from models.engine.backends.onnxruntime import OnnxRuntimeBackend  # noqa: PLC0415 - as above

    return OnnxRuntimeBackend(threads=threads, gpu=gpu)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
