"""A child process for untrusted files: limits, no network, an empty home, a deadline.

The parent half, ``run_sandboxed``, starts this module in a scratch folder; the child half gives up what it does not
need (``enter``) while it is still one thread, then imports the module that does the work and calls its ``main``.
Protocol: the child writes one JSON object a line to its standard output, first ``{"network": "isolated"|"shared"}``,
then ``{"stage", "fraction"}`` for progress and at last ``{"result": {...}}`` or ``{"error": "one sentence"}``. Whatever
it says is data to the parent, never code.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import models
from models.errors import ConversionError
from models.weights import landlock
from models.weights.child_output import Listener, read_until_end, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

DEADLINE_S = 600.0
ADDRESS_SPACE_BYTES = 24 * 1024**3
FILE_SIZE_BYTES = 2 * 1024**3
OPEN_FILES = 512

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
_NETWORK_VARIABLES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)


def run_sandboxed(
    module: str,
    request: Mapping[str, Any],
    scratch: Path,
    *,
    progress: Callable[[str, float], None] | None = None,
    deadline_s: float = DEADLINE_S,
    online: bool = False,
    work: str = "conversion",
) -> dict[str, Any]:
    """Run ``module`` on ``request`` in a sandboxed child and return its result; blocks up to ``deadline_s`` seconds.

    Args:
        module: its ``main(request, progress)`` does the work in the scratch folder and returns JSON; what ``enter``
            achieved stands in ``request["network"]``.
        request: what the child shall do; JSON.
        scratch: an existing folder; the child's working folder, home and temporary folder.
        progress: called with the stage's name and the fraction done, 0 to 1.
        deadline_s: afterwards the child, its process group and its descendants are killed. A process that has left
            the group and lost its parent is not found; it is no longer listened to.
        online: leave the child the network: for fetching a file, never for opening one.
        work: what the child does, in one word for messages.

    Raises:
        ConversionError: the child said why it refuses, ran out of time or memory, or died.

    """
    path = scratch / "request.json"
    path.write_text(json.dumps(request))
    deadline = time.monotonic() + deadline_s
    with _UNREADABLE, (scratch / "child.log").open("wb") as log:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
            [
                *(sys.executable, "-P", "-m", __name__, module, str(path)),
                *("online" if online else "offline", str(int(deadline_s) + 1), work),
            ],
            cwd=scratch,
            env=_environment(scratch, online=online),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        listener = Listener(progress)
        try:
            with child.stdout as stdout:  # type: ignore[union-attr] # a pipe was asked for
                for data in read_until_end(stdout, child.pid, deadline):
                    listener.hear(data)
            expired = not wait_until(child.pid, deadline)
        finally:
            _kill(child)
            child.wait()
    outcome = listener.outcome
    if listener.network == "shared" and not online:
        _log.warning(
            "this host allows no network namespace, so the weights file was opened in a process that could reach the "
            "network; register only files you trust here, or allow unprivileged user namespaces"
        )
    if outcome is None:
        _log.warning("sandboxed child ended with %s: %s", child.returncode, _tail(scratch / "child.log"))
        raise ConversionError(_explain(child.returncode, deadline_s, work, expired=expired))
    if "error" in outcome:
        _log.info("sandboxed child refused: %s", _tail(scratch / "child.log"))
        raise ConversionError(str(outcome["error"])[:500])
    return dict(outcome["result"])


def enter(scratch: Path, *, online: bool = False, deadline_s: int = int(DEADLINE_S)) -> str:
    """Give up, for this process, what it does not need; the kernel demands that it has one thread only.

    deadline_s: seconds for which every core may be kept busy.

    Returns ``isolated`` where the process now lives in a network namespace without interfaces, else ``shared``: some
    hosts forbid namespaces, and there the conversion still runs, as its libraries are told to stay offline.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, limit in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, FILE_SIZE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CPU, deadline_s * (os.cpu_count() or 1)),
    ):
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
    os.umask(0o077)
    os.chdir(scratch)
    isolated = not online and sys.platform == "linux" and _leave_network()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # An orphan would go on burning cores for minutes after a Ctrl-C that hit only its parent.
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        # Only now: writing the user mapping above needs a process that may be looked into.
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if not landlock.confine(scratch, online=online):
            _log.warning("this kernel has no Landlock: the child may write wherever its user may")
    return "isolated" if isolated else "shared"


def _leave_network() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        # Without a mapping the user has no name, and libraries that look up the home folder fail.
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        return True
    return bool(libc.unshare(_CLONE_NEWNET) == 0)


def _environment(scratch: Path, *, online: bool) -> dict[str, str]:
    """Return the child's whole environment: nothing secret of the parent's reaches it."""
    names = _KEPT_VARIABLES + (_NETWORK_VARIABLES if online else ())
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(scratch),
        "XDG_CONFIG_HOME": str(scratch),
        "MPLCONFIGDIR": str(scratch),
        "YOLO_CONFIG_DIR": str(scratch),
        "PYTHONPATH": str(Path(next(iter(models.__path__))).parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ULTRALYTICS_SAFE_LOAD": "1",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "false" if online else "true",
        "YOLO_VERBOSE": "false",
        "DO_NOT_TRACK": "1",
    }


class _Unreadable:
    """While entered, nobody of this user can read this process's memory and environment; Linux only, thread-safe.

    The child runs under the same user. Where it could not leave the network it shares the user namespace too, and then
    ``/proc/<parent>/environ`` is open to it. Other processes of this user are not covered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0 and sys.platform == "linux":
                libc = ctypes.CDLL(None, use_errno=True)
                self._before = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
                libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and sys.platform == "linux" and self._before == 1:
                ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


_UNREADABLE = _Unreadable()


def _kill(child: subprocess.Popen[bytes]) -> None:
    strays: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        strays = psutil.Process(child.pid).children(recursive=True)
    # The child leads its own session, so its process group has its id and holds what did not leave it on purpose.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    for stray in strays:
        with contextlib.suppress(psutil.Error):
            stray.kill()


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_bytes()[-2000:].decode(errors="replace")
    return ""


def _explain(returncode: int, deadline_s: float, work: str, *, expired: bool) -> str:
    if expired:
        return f"The {work} was stopped after {deadline_s:.0f} s; try on a faster machine or with a smaller model."
    if returncode == -signal.SIGKILL:
        return f"The {work} was killed, most likely for want of memory; try on a machine with more."
    return f"The {work} ended without a result; the file is damaged or not a detector. Export it afresh."


def _be_the_child(module: str, path: Path, *, online: bool, deadline_s: int, work: str) -> None:
    # Libraries print what they like: the protocol keeps a descriptor of its own and they get standard error.
    protocol = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        protocol.write(f"{json.dumps(message, allow_nan=False)}\n")
        protocol.flush()

    try:
        network = enter(path.parent, online=online, deadline_s=deadline_s)
        say({"network": network})
        request = json.loads(path.read_text()) | {"network": network}
        main = importlib.import_module(module).main
        say({"result": main(request, lambda stage, done: say({"stage": stage, "fraction": done}))})
    except ConversionError as error:
        _log.warning("refused", exc_info=True)
        say({"error": str(error)})
    except MemoryError:
        say({"error": f"The {work} ran out of memory; try on a machine with more."})
    except Exception:  # noqa: BLE001 - the last line of a process; the parent needs an answer in any case
        _log.exception("%s failed", work)
        say({"error": f"The {work} failed on this file; it is damaged or of a kind that is not served yet."})


if __name__ == "__main__":
    _be_the_child(
        sys.argv[1], Path(sys.argv[2]), online=sys.argv[3] == "online", deadline_s=int(sys.argv[4]), work=sys.argv[5]
    )
