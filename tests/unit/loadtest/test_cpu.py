"""CPU accounting: what was used in between, by process, whatever was born or died meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import cpu
import pytest
from cpu import ProcessKey, Snapshot, Usage

if TYPE_CHECKING:
    from pathlib import Path


def usage(name: str, cpu_s: float) -> Usage:
    """Return a process that has used so much."""
    return Usage(name, cpu_s, rss=10, pss=5)


def test_differences_are_taken_a_process() -> None:
    """One that was there counts its difference, one born in between the whole; names add up."""
    before = Snapshot(10.0, {ProcessKey(1, 0.5): usage("a", 3.0)})
    after = Snapshot(
        12.0,
        {
            ProcessKey(1, 0.5): usage("a", 4.0),
            ProcessKey(2, 11.0): usage("b", 0.5),
            ProcessKey(3, 11.0): usage("b", 0.25),
        },
    )
    spent = cpu.spent(before, after)

    assert (spent.seconds, spent.cpu_s) == (2.0, 1.75)
    assert spent.by_name == {"a": 1.0, "b": 0.75}
    assert (after.rss, after.pss) == (30, 15)


def test_a_process_id_given_again_is_another_process() -> None:
    """The new owner of an id starts from nothing; what the old one had used was seen before and is not lost twice."""
    before = Snapshot(0.0, {ProcessKey(1, 0.5): usage("a", 3.0), ProcessKey(9, 0.1): usage("parent", 1.0)})
    after = Snapshot(1.0, {ProcessKey(1, 0.9): usage("a", 0.5), ProcessKey(9, 0.1): usage("parent", 4.5)})

    # The parent waited for its child, which had used 3.0 before and 0.3 since, and used 0.2 itself.
    assert cpu.spent(before, after).cpu_s == pytest.approx(1.0)


def test_nothing_is_never_less_than_nothing() -> None:
    """A process that ended without anybody waiting for it must not turn the sum negative."""
    assert cpu.spent(Snapshot(0.0, {ProcessKey(1, 0.5): usage("a", 3.0)}), Snapshot(1.0)).cpu_s == 0.0


def test_the_children_of_a_tree_count() -> None:
    """Work of a child is found, under its own name, with the time it really took."""
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = cpu.take(cpu.tree(os.getpid()))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        after = cpu.take(cpu.tree(os.getpid()))
        child.communicate(b"\n", timeout=10)

    found = {key.pid: each for key, each in after.processes.items()}
    assert found[child.pid].cpu_s >= 0.28
    assert cpu.spent(before, after).cpu_s >= 0.28
    assert found[child.pid].pss > 0


def test_a_process_that_has_ended_is_no_error() -> None:
    """Servers lose processes while they are measured."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        members = cpu.tree(child.pid)
        child.wait(10)

    assert cpu.take(members).processes == {}
    assert cpu.tree(child.pid) == []


def test_a_home_without_service_has_no_processes(tmp_path: Path) -> None:
    """Nothing is guessed where nothing is recorded."""
    assert cpu.service(tmp_path) == []


def test_the_command_prints_what_was_used(capsys: pytest.CaptureFixture[str]) -> None:
    """The command looks for as long as it was told."""
    began = time.monotonic()
    assert cpu.main([str(os.getpid()), "--seconds", "0.1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)

    assert 0.1 <= printed["seconds"] <= time.monotonic() - began
    assert printed["pss"] > 0


@pytest.mark.parametrize("arguments", [[], ["1", "--home", "x"], ["1", "--seconds", "0"], ["999999999"]])
def test_senseless_commands_are_refused(arguments: list[str]) -> None:
    """One process or one home, for a bounded time."""
    with pytest.raises(SystemExit) as caught:
        cpu.main(arguments)

    assert caught.value.code == 2
