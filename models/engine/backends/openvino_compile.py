"""Compile a network in a process of its own, behind everything that answers: ``python -m`` with a request, as JSON.

In a replica, compiling holds the interpreter's lock now and then, during which nothing is answered, and every replica
would do the same again. The process inherits the priority of the thread that starts it, and stays in its session,
outside of which priorities mean nothing (autogroup).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from models.engine.backends.openvino_compiled import CompiledNetworks
from models.engine.backends.openvino_network import Network, Variant, runtime

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

COMPILE_DEADLINE_S = 30.0
"""Longest wait for networks that another process compiles; a replica has 120 s by default for all that it prepares."""
POLL_S: Final = 0.02
KILL_S: Final = 5.0
"""Longest wait for the end of a process that was killed."""
NOT_KEPT: Final = 3
"""How the process ends where the disk takes no more; the log then holds why."""
KEPT_VARIABLES: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "OMP_NUM_THREADS")
"""What the process needs of the environment, which holds keys that it does not need."""
_PR_SET_PDEATHSIG: Final = 1
_OOM_FIRST: Final = b"1000"


def compile_once(
    network: Network, compiled: CompiledNetworks, variants: Sequence[Variant], abandoned: threading.Event
) -> None:
    """Have ``variants`` lie in ``compiled``, made by one process of this machine; blocks for ``COMPILE_DEADLINE_S``.

    Raises nothing: what is missing afterwards is for the caller to compile. abandoned: ends the wait when it is set.
    """
    if network.digest in compiled.distrusted:
        return

    def make(missing: Sequence[int], left_s: float) -> None:
        compile_apart(network, compiled, [variants[place] for place in missing], abandoned, deadline_s=left_s)

    compiled.complete([network.key(each) for each in variants], make, abandoned, deadline_s=COMPILE_DEADLINE_S)


def compile_apart(
    network: Network,
    compiled: CompiledNetworks,
    variants: Sequence[Variant],
    abandoned: threading.Event,
    *,
    deadline_s: float,
) -> None:
    """Compile ``variants`` in a process, in this order; blocks up to ``deadline_s`` seconds and those of killing.

    compiled: its folder exists. abandoned: the process is killed when it is set, as at the deadline; what it has
    written by then stays. Where the process fails the log says why, and nothing is raised.
    """
    request = {
        "folder": str(compiled.folder),
        "stride": network.stride,
        "precision": network.precision,
        "variants": variants,
    }
    try:
        with tempfile.TemporaryFile(dir=compiled.folder) as data, tempfile.TemporaryFile(dir=compiled.folder) as log:
            data.write(network.data.data)
            data.seek(0)
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-P", "-m", __name__, json.dumps(request), str(os.getpid())],
                stdin=data,
                stdout=log,
                stderr=log,
                env=_environment(),
            )
            try:
                code = _wait(child, abandoned, time.monotonic() + deadline_s)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait(KILL_S)
            if code:
                log.seek(0)
                tail = log.read()[-2000:].decode(errors="replace")
                logger.warning("the process that compiles ended with %d; this one compiles: %s", code, tail)
            elif code is None and not abandoned.is_set():
                logger.warning("a process has not compiled the network in %.0f s; this one compiles", deadline_s)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no process compiles the network; this one compiles: %s", error)


def _wait(child: subprocess.Popen[bytes], abandoned: threading.Event, end: float) -> int | None:
    """Return how ``child`` ended, None where it has not."""
    while child.poll() is None:
        if abandoned.wait(POLL_S) or time.monotonic() > end:
            return None
    return child.returncode


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # What this process can import, in its order, however it was told where that is.
    return kept | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def compile_into(
    compiled: CompiledNetworks, core: Any, data: NDArray[np.uint8], variants: Sequence[Variant], **how: Any
) -> bool:
    """Compile ``variants`` here, one after the other, and write each as it is done; return whether all are kept.

    how: ``stride`` and ``precision`` as ``Network`` takes them. Raises what ``Network.request`` does.
    """
    network = Network(core, data, **how)
    keys = [network.key(variant) for variant in variants]
    for variant, key in zip(variants, keys, strict=True):
        exported = network.request(variant).get_compiled_model().export_model()
        blob = exported if isinstance(exported, bytes) else exported.getvalue()
        if not compiled.write(key, blob):
            return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Be the process: the network is on standard input. Return its exit code."""
    request, parent = json.loads(arguments[0]), int(arguments[1])
    if sys.platform == "linux":
        # Whoever asked for it would not read what an orphan compiles, and a successor starts its own.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            return 0
        # Where memory runs out and the kernel picks one process, it picks this.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_bytes(_OOM_FIRST)
    data = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
    variants = [Variant(None if shape is None else tuple(shape), threads) for shape, threads in request["variants"]]
    how = {name: request[name] for name in ("stride", "precision")}
    kept = compile_into(CompiledNetworks(Path(request["folder"])), runtime(), data, variants, **how)
    return 0 if kept else NOT_KEPT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
