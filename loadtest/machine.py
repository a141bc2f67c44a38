"""What a result must say of the machine and the software it was measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

from serve.settings import available_cores

PACKAGES = ("steelyard", "ray", "openvino", "onnxruntime", "numpy", "opencv-python-headless", "simplejpeg", "uvicorn")
ROOT = Path(__file__).resolve().parent.parent
GIB = 1024**3


def describe() -> dict[str, object]:
    """Return date, commit, CPU, memory, GPU and versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _commit(),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""),
        "cores": available_cores(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none",
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def cpu_model(cpuinfo: str) -> str:
    """Return the processor's name from the text of /proc/cpuinfo, with what of its vector units matters here."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    units = [unit for unit in ("avx2", "avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()]
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(units)})" if units else name


def _commit() -> str:
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return (commit or "unknown") + (" with changes" if changed else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _first_line(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - read-only
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
