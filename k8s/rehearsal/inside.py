"""What runs inside the rehearsal's tree, as the image's user: the image's command, its health check, one picture.

Needs nothing but Python's standard library. Reads a JSON object on standard input and writes one on standard output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

POLL_S: Final = 1.0
STOP_S: Final = 40.0


def writable_places(candidates: list[str]) -> list[str]:
    """Return the folders of ``candidates`` in which this user can make a file."""
    found = []
    for folder in candidates:
        probe = Path(folder) / ".rehearsal"
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            continue
        found.append(folder)
    return found


def wait_until_healthy(service: subprocess.Popen[bytes], check: list[str], deadline_s: float) -> float:
    """Return the seconds until the image's health check says yes. Raises SystemExit where it never does."""
    started = time.monotonic()
    while time.monotonic() - started < deadline_s:
        if service.poll() is not None:
            message = f"the service ended with {service.returncode} before it was healthy"
            raise SystemExit(message)
        healthy = subprocess.run(check, capture_output=True, timeout=10, check=False)  # noqa: S603 - the image's own
        if healthy.returncode == 0:
            return time.monotonic() - started
        time.sleep(POLL_S)
    message = f"the service was not healthy within {deadline_s:.0f} s"
    raise SystemExit(message)


def ask(url: str, key: str | None, picture: bytes) -> tuple[int, dict[str, Any]]:
    """Return status and body of one detection."""
    headers = {"Content-Type": "image/jpeg"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data=picture, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - likewise
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main() -> None:
    """Start the service, ask it, stop it, and tell what was seen."""
    given = json.load(sys.stdin)
    log = Path(given["log"]).open("wb")  # noqa: SIM115 - the service's, until this process ends
    service = subprocess.Popen(given["command"], stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - the image's own
    try:
        ready_s = wait_until_healthy(service, given["healthcheck"], given["deadline_s"])
        picture = Path(given["picture"]).read_bytes()
        url = f"http://127.0.0.1:{given['port']}/v1/detect"
        refused, _ = ask(url, None, picture)
        status, answer = ask(url, given["key"], picture)
    except BaseException:
        log.flush()
        sys.stderr.write(Path(given["log"]).read_text(encoding="utf-8", errors="replace")[-4000:])
        raise
    finally:
        service.send_signal(signal.SIGTERM)
        try:
            ended = service.wait(STOP_S)
        except subprocess.TimeoutExpired:
            service.kill()
            ended = -signal.SIGKILL
    places = sorted({str(path) for path in Path("/").iterdir() if path.is_dir()} | set(given["places"]))
    seen = {
        "user": os.getuid(),
        "groups": os.getgroups(),
        "capabilities": _status("CapEff"),
        "ready_s": round(ready_s, 1),
        "without_key": refused,
        "status": status,
        "answer": answer,
        "exit": ended,
        "writable": writable_places(places),
    }
    json.dump(seen, sys.stdout)


def _status(name: str) -> str:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
