"""The servers that Steelyard is compared with: what each is, and how its virtual environment and network are made.

The programs are in ``peers/``, about as long as a user's own. Each runs in an environment of its own, outside the
project's, from pinned requirements.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import framing
from servers import ServerError, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers import Server

FOLDER = Path(__file__).resolve().parent / "peers"
BUILD_DEADLINE_S = 3600.0
EXPORT_DEADLINE_S = 600.0
EXPORTER = "fastapi"


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to serve a detector.

    title: for tables. script: in peers/. environment: name of requirements-NAME.txt there, None for the project's own.
    network: ``openvino``, ``onnx`` or ``pt``. path, framing: of its requests. arguments: behind port and network.
    """

    title: str
    script: str
    environment: str | None
    network: str
    path: str
    framing: str
    arguments: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    "fastapi": Peer(
        "FastAPI + Ultralytics OpenVINO", "fastapi_ultralytics.py", "fastapi", "openvino", "/detect", "raw"
    ),
    "fastapi-onnx": Peer("FastAPI + Ultralytics ONNX", "fastapi_ultralytics.py", "fastapi", "onnx", "/detect", "raw"),
    "fastapi-pt": Peer("FastAPI + Ultralytics .pt", "fastapi_ultralytics.py", "fastapi", "pt", "/detect", "raw"),
    "pytriton": Peer(
        "PyTriton, OpenVINO, dynamic batching",
        "pytriton_openvino.py",
        "pytriton",
        "openvino",
        "/v2/models/detector/infer",
        "triton",
    ),
    "litserve": Peer(
        "LitServe, OpenVINO, batch 1", "litserve_ultralytics.py", "litserve", "openvino", "/predict", "raw", ("1",)
    ),
    "litserve-8": Peer(
        "LitServe, OpenVINO, batch 8", "litserve_ultralytics.py", "litserve", "openvino", "/predict", "raw", ("8",)
    ),
    "bentoml": Peer("BentoML, OpenVINO", "bentoml_ultralytics.py", "bentoml", "openvino", "/detect", "raw"),
    "ray-serve": Peer(
        "Ray Serve as documented, @serve.batch", "ray_serve_ultralytics.py", None, "openvino", "/", "raw"
    ),
}


def is_built(peer: Peer, cache: Path) -> bool:
    """Return whether the peer's virtual environment is there."""
    return peer.environment is None or (_environment(peer.environment, cache) / ".built").is_file()


def build(peer: Peer, cache: Path, say: Callable[[str], None]) -> None:
    """Make the peer's virtual environment if it is not there; takes minutes. Raises ServerError."""
    if peer.environment is None or is_built(peer, cache):
        return
    folder = _environment(peer.environment, cache)
    say(f"installing {_requirements(peer.environment).name} into {folder} (once, some minutes)")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    _call([*pip, "-r", str(_requirements(peer.environment))], BUILD_DEADLINE_S)
    (folder / ".built").touch()


@contextlib.contextmanager
def serve(name: str, *, weights: Path, cache: Path, picture: bytes) -> Iterator[Server]:
    """Run the peer ``name``, whose environment is built, while the block runs.

    weights: a ``.pt`` file. picture: a JPEG that it must answer before it counts as ready. Raises ServerError.
    """
    peer = PEERS[name]
    network = _network(peer, weights, cache)
    command = [_python(peer.environment, cache), str(FOLDER / peer.script), "{port}", str(network), *peer.arguments]

    def request(host: str) -> bytes:
        return framing.build(picture, framing=peer.framing, host=host, path=peer.path)

    with program(name, command, path=peer.path, framing=peer.framing, request=request) as server:
        yield server


def _network(peer: Peer, weights: Path, cache: Path) -> Path:
    """Return the path that the peer loads, exported with Ultralytics on the first call."""
    if peer.network == "pt":
        return weights
    key = hashlib.sha256(weights.read_bytes() + (FOLDER / "export.py").read_bytes()).hexdigest()[:16]
    folder = cache / "networks" / key
    found = folder / weights.name
    exported = found.with_suffix(".onnx") if peer.network == "onnx" else found.with_name(f"{found.stem}_openvino_model")
    if not exported.exists():
        _call(
            [_python(EXPORTER, cache), str(FOLDER / "export.py"), str(weights), peer.network, str(folder)],
            EXPORT_DEADLINE_S,
        )
    return exported / f"{found.stem}.xml" if peer.script.startswith("pytriton") else exported


def _requirements(environment: str) -> Path:
    return FOLDER / f"requirements-{environment}.txt"


def _environment(environment: str, cache: Path) -> Path:
    """Return the folder of an environment; other requirements make another one."""
    key = hashlib.sha256(_requirements(environment).read_bytes()).hexdigest()[:8]
    return cache / "venvs" / f"{environment}-{key}"


def _python(environment: str | None, cache: Path) -> str:
    return sys.executable if environment is None else str(_environment(environment, cache) / "bin" / "python")


def _call(command: list[str], seconds: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{' '.join(command[:3])} did not end well: {error}"
        raise ServerError(msg) from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        msg = f"{' '.join(command[:3])} failed:\n{tail}"
        raise ServerError(msg)
