"""CPU time and memory of everything that belongs to a server: a process tree, or all of a Steelyard service.

    python loadtest/cpu.py 4242 --seconds 20
    python loadtest/cpu.py --home .steelyard --seconds 20

Ray's processes are no mere descendants of ``steelyard serve``: with ``--home`` they are found as the service itself
finds them, by the folder that its home names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from serve.home import read_record, remembered_folder  # noqa: E402 - found through the line above when run as a script
from serve.processes import processes_of  # noqa: E402 - likewise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MIB = 1024**2


class ProcessKey(NamedTuple):
    """A process for good: its id may be given again, but not with the same moment of birth."""

    pid: int
    created: float


@dataclass(frozen=True, slots=True)
class Usage:
    """One process. cpu_s: user and system seconds, its ended and waited-for children's too. pss, rss: bytes."""

    name: str
    cpu_s: float
    rss: int
    pss: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes of a server at one moment. moment: seconds on ``time.monotonic``'s clock."""

    moment: float
    processes: dict[ProcessKey, Usage] = field(default_factory=dict)

    @property
    def rss(self) -> int:
        """Return the sum of the resident sets in bytes; pages that processes share count in each."""
        return sum(usage.rss for usage in self.processes.values())

    @property
    def pss(self) -> int:
        """Return the sum of the proportional sets in bytes: what the server really takes."""
        return sum(usage.pss for usage in self.processes.values())


@dataclass(frozen=True, slots=True)
class Spent:
    """What a server took between two snapshots. by_name: CPU seconds by the processes' names."""

    seconds: float
    cpu_s: float
    by_name: dict[str, float]


def tree(root: int) -> list[psutil.Process]:
    """Return the process ``root`` and all its descendants; none where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def service(home: Path) -> list[psutil.Process]:
    """Return every process of the Steelyard service that runs out of ``home``, this one excepted."""
    record, folder = read_record(home), remembered_folder(home)
    found = {} if record is None else {process.pid: process for process in tree(record.pid)}
    for process in [] if folder is None else processes_of(folder):
        found.setdefault(process.pid, process)
    return list(found.values())


def take(processes: Iterable[psutil.Process]) -> Snapshot:
    """Return what ``processes`` have used so far; those that have ended meanwhile are left out."""
    usages: dict[ProcessKey, Usage] = {}
    moment = time.monotonic()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            with process.oneshot():
                cpu, memory = process.cpu_times(), process.memory_info()
                name = _title(process)
            usages[ProcessKey(process.pid, process.create_time())] = Usage(
                name, sum(cpu[:4]), memory.rss, _pss(process)
            )
    return Snapshot(moment, usages)


def spent(before: Snapshot, after: Snapshot) -> Spent:
    """Return what was used in between.

    A process born in between counts from its birth. One that ended counts through its parent if that waited for it;
    else what it used since ``before`` is lost.
    """
    by_name: dict[str, float] = defaultdict(float)
    for key, usage in after.processes.items():
        earlier = before.processes.get(key)
        by_name[usage.name] += usage.cpu_s - (0.0 if earlier is None else earlier.cpu_s)
    # A child that was counted by itself in ``before`` and was then waited for stands in its parent's time as a whole.
    for key, usage in before.processes.items():
        if key not in after.processes:
            by_name["(ended)"] -= usage.cpu_s
    total = max(sum(by_name.values()), 0.0)
    return Spent(after.moment - before.moment, total, dict(sorted(by_name.items(), key=lambda pair: -pair[1])))


def _title(process: psutil.Process) -> str:
    """Return a name that tells Ray's workers and Python's scripts apart."""
    name = process.name()
    command = process.cmdline()
    if command and command[0].startswith("ray::"):
        return command[0].split()[0]
    if name.startswith("python"):
        words = [Path(word).name for word in command[1:] if not word.startswith("-")]
        return f"python {words[0]}" if words else name
    return name


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return process.memory_info().rss


def main(arguments: Sequence[str] | None = None) -> int:
    """Print CPU by process over some seconds, and memory at their end."""
    parser = argparse.ArgumentParser(description="CPU and memory of all processes of a server.")
    parser.add_argument("pid", type=int, nargs="?", help="root of a process tree")
    parser.add_argument("--home", type=Path, help="home folder of a Steelyard service instead")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to look (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if (options.pid is None) == (options.home is None):
        parser.error("name a process id, or --home FOLDER")
    if not 0.1 <= options.seconds <= 3600.0:  # noqa: PLR2004 - an hour is enough for anything
        parser.error("--seconds is outside 0.1 to 3600")

    def find() -> list[psutil.Process]:
        return tree(options.pid) if options.home is None else service(options.home.absolute())

    before = take(find())
    if not before.processes:
        parser.error("no such process runs")
    time.sleep(options.seconds)
    after = take(find())
    used = spent(before, after)
    if options.json:
        print(json.dumps({"seconds": used.seconds, "cpu_s": used.cpu_s, "by_name": used.by_name, "pss": after.pss}))
        return 0
    for name, cpu_s in used.by_name.items():
        members = [usage for usage in after.processes.values() if usage.name == name]
        pss = sum(usage.pss for usage in members)
        print(f"{100 * cpu_s / used.seconds:6.1f} % of a core  {pss / MIB:7.0f} MiB  {len(members):3} x {name}")
    print(f"{100 * used.cpu_s / used.seconds:6.1f} % of a core  {after.pss / MIB:7.0f} MiB  in all (proportional set)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
