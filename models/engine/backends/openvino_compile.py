"""Compile a network in a process of its own, behind everything that answers: ``python -m`` with a request, as JSON.

In a replica, compiling holds the interpreter's lock now and then, during which nothing is answered, and every replica
would do the same again. The process inherits the priority of the thread that starts it, and stays in its session,
outside of which priorities mean nothing (autogroup).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import models
from models.engine.backends.openvino_compiled import CompiledNetworks
from models.engine.backends.openvino_network import Network, Variant, runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

KILL_S: Final = 5.0
"""Longest wait for the end of a process that was killed."""
_PR_SET_PDEATHSIG: Final = 1


def compile_apart(
    data: NDArray[np.uint8],
    variants: Sequence[Variant],
    folder: Path,
    *,
    stride: int,
    precision: str,
    deadline_s: float,
) -> None:
    """Write ``variants`` of a network into ``folder``; blocks up to ``deadline_s`` seconds and those of killing.

    Args:
        data: the network as ONNX, uint8 (size,).
        variants: what to compile it for, in this order.
        folder: existing, of ``CompiledNetworks``.
        stride: as ``Network`` takes it.
        precision: as ``Network`` takes it.
        deadline_s: the process is killed then; what it has written by then stays.

    Where the process fails the log says why, and nothing is raised: the caller compiles what is still missing.

    """
    request = {"folder": str(folder), "stride": stride, "precision": precision, "variants": variants}
    try:
        with tempfile.TemporaryFile(dir=folder) as network, tempfile.TemporaryFile(dir=folder) as log:
            network.write(data.data)
            network.seek(0)
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-P", "-m", __name__, json.dumps(request), str(os.getpid())],
                stdin=network,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(next(iter(models.__path__))).parent)},
            )
            try:
                code = child.wait(deadline_s)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait(KILL_S)
            if code:
                log.seek(0)
                tail = log.read()[-2000:].decode(errors="replace")
                logger.warning("the process that compiles ended with %d; this one compiles: %s", code, tail)
    except subprocess.TimeoutExpired:
        logger.warning("a process has not compiled the network within %.0f s; this one compiles", deadline_s)
    except OSError as error:
        logger.warning("no process to compile the network can be started; this one compiles: %s", error)


def compile_into(
    compiled: CompiledNetworks, core: Any, data: NDArray[np.uint8], variants: Sequence[Variant], **how: Any
) -> None:
    """Compile ``variants`` here, one after the other, and write each as it is done.

    how: ``stride`` and ``precision`` as ``Network`` takes them. Raises what ``Network.compile`` does.
    """
    network = Network(core, data, **how)
    for variant in variants:
        exported = network.compile(variant).export_model()
        blob = exported if isinstance(exported, bytes) else exported.getvalue()
        if not compiled.write(network.key(variant), blob):
            return


def main(arguments: Sequence[str]) -> None:
    """Be the process: the network is on standard input."""
    request, parent = json.loads(arguments[0]), int(arguments[1])
    if sys.platform == "linux":
        # Whoever asked for it would not read what an orphan compiles, and a successor starts its own.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            return
    data = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
    variants = [Variant(None if shape is None else tuple(shape), threads) for shape, threads in request["variants"]]
    how = {name: request[name] for name in ("stride", "precision")}
    compile_into(CompiledNetworks(Path(request["folder"])), runtime(), data, variants, **how)


if __name__ == "__main__":
    main(sys.argv[1:])
