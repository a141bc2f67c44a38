"""The single measurements of a benchmark, each in a process of its own so that CPU can be told apart."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cpu
import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servers import Server

FOLDER = Path(__file__).resolve().parent
MARGIN_S = 240.0
"""What a measurement may take beyond the load itself: compiling networks, and requests that time out."""
MIB = 1024**2
SAMPLE_S = 0.25
PROMOTE_DEADLINE_S = 60.0
REPLICA = "ray::ServeReplica"
"""How the processes are titled in which Ray Serve keeps replicas."""


class MeasureError(Exception):
    """A measurement ended without a result; the message holds the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Source:
    """What every measurement of one benchmark has in common. release: folder. images: picture or folder."""

    release: Path
    images: Path
    precision: str = "auto"
    seed: int = 0

    @property
    def arguments(self) -> list[str]:
        """Return the options of the scripts that load the network themselves."""
        options = ["--release", str(self.release), "--images", str(self.images), "--precision", self.precision]
        return [*options, "--seed", str(self.seed), "--json"]


def raw(source: Source, seconds: float, *, best: bool = False) -> dict[str, Any]:
    """Return the raw engine's rate; with ``best`` that of its fastest way."""
    more = ["--best"] if best else []
    fastest: dict[str, Any] = _script("raw.py", [*source.arguments, "--seconds", str(seconds), *more], seconds)[0]
    return fastest


def in_process(source: Source, seconds: float, clients: Sequence[int], *, warmup_s: float) -> dict[str, Any]:
    """Return the engine's best rate over ``clients`` at once, of which the first is 1 and gives the lone p50."""
    options = ["--seconds", str(seconds), "--clients", ",".join(map(str, clients))]
    options += ["--warmup", str(warmup_s)]
    runs = _script("in_process.py", [*source.arguments, *options], seconds * len(clients) + warmup_s)
    best: dict[str, Any] = max(runs, key=lambda run: run["rate"])
    lone = [run["p50_ms"] for run in runs if run["clients"] == 1]
    return {**best, "lone_p50_ms": lone[0] if lone else None}


def load(server: Server, source: Source, seconds: float, *options: str, most: int = 100_000) -> dict[str, Any]:
    """Put ``server`` under load with ``load.py`` and return its report; ``options`` say which load."""
    arguments = [str(source.images), "--url", server.url, "--path", server.path, "--framing", server.framing]
    arguments += ["--seconds", str(seconds), "--requests", str(most), "--warmup", "0", "--seed", str(source.seed)]
    report: dict[str, Any] = _script("load.py", [*arguments, "--json", *options], seconds)["runs"][0]
    return report


def warm_up(server: Server, source: Source, requests: int) -> None:
    """Send so many requests that nothing is compiled any more. Raises MeasureError where none is answered."""
    report = load(server, source, 600.0, "--clients", "4", most=requests)
    if not report["answered"]:
        msg = f"{server.name} answers nothing: {report['failures']}"
        raise MeasureError(msg)


def with_cpu(server: Server, measure: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the report of ``measure`` and what the server took meanwhile: CPU an image, memory at the end."""
    before = cpu.take(server.processes())
    report = measure()
    after = cpu.take(server.processes())
    used = cpu.spent(before, after)
    images = max(report["answered"], 1)
    return report, {
        "cpu_ms": 1e3 * used.cpu_s / images,
        "cpu_ms_by_name": {name: 1e3 * cpu_s / images for name, cpu_s in used.by_name.items() if cpu_s},
        "pss_mib": after.pss / MIB,
        "rss_mib": after.rss / MIB,
    }


def idle(server: Server, seconds: float) -> dict[str, Any]:
    """Return the CPU, in per cent of one core, that ``server`` takes while nobody asks it anything."""
    before = cpu.take(server.processes())
    time.sleep(seconds)
    used = cpu.spent(before, cpu.take(server.processes()))
    by_name = {name: 100 * cpu_s / used.seconds for name, cpu_s in used.by_name.items() if cpu_s}
    return {"percent": 100 * used.cpu_s / used.seconds, "seconds": used.seconds, "by_name": by_name}


def promote(server: Server, model: str, version: str) -> None:
    """Promote ``version`` and wait until the fleet serves it. Raises MeasureError after PROMOTE_DEADLINE_S."""
    wanted = httpx.post(
        f"{server.url}/v1/models/{model}/promote", json={"version": version}, timeout=PROMOTE_DEADLINE_S
    )
    end = time.monotonic() + PROMOTE_DEADLINE_S
    while wanted.is_success and time.monotonic() < end:
        rollout = httpx.get(f"{server.url}/v1/models/{model}/rollout", timeout=PROMOTE_DEADLINE_S)
        if rollout.is_success and rollout.json().get("serving") == version:
            return
        time.sleep(SAMPLE_S)
    msg = f"version {version} of {model} does not serve after its promotion: {wanted.text[:300]}"
    raise MeasureError(msg)


class MemoryWatch:
    """Looks at the replicas' memory while a block runs. ``most``: the largest proportional set of one, in bytes."""

    def __init__(self, server: Server) -> None:
        """Watch the replicas that run now."""
        self._replicas = [process for process in server.processes() if process.name().startswith(REPLICA[:15])]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            usages = cpu.take(self._replicas).processes.values()
            self.most = max([self.most, *(usage.pss for usage in usages)])
            if self._done.wait(SAMPLE_S):
                return


def _script(name: str, arguments: Sequence[str], seconds: float) -> Any:
    """Return what a script of this folder printed as JSON. Raises MeasureError."""
    command = [sys.executable, str(FOLDER / name), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own scripts
            command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=seconds + MARGIN_S, check=False
        )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        msg = f"{name} did not end within {seconds + MARGIN_S:.0f} s"
    except ValueError:
        msg = f"{name} gave no result (exit code {done.returncode}):\n" + "\n".join(done.stderr.splitlines()[-8:])
    raise MeasureError(msg)
