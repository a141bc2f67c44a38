"""Compiled networks on disk: whole or missing, within their space, made once a machine."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING

import filelock
import pytest

from models.engine.backends import openvino_compiled as module
from models.engine.backends.openvino_compiled import CompiledNetworks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WAIT_S = 10.0


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """By whoever opens the folder, which is made for it, and only under its key."""
    assert CompiledNetworks(tmp_path / "cache" / "engines").write("a", b"network")
    networks = CompiledNetworks(tmp_path / "cache" / "engines")
    assert (networks.has("a"), networks.read("a")) == (True, b"network")
    assert (networks.has("b"), networks.read("b")) == (False, None)
    networks.discard("a")
    networks.discard("a")
    assert networks.read("a") is None
    assert list(networks.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer", "foreign", "renamed"])
def test_a_damaged_file_is_missing(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """And is removed, so that a whole one takes its place."""
    networks = CompiledNetworks(tmp_path)
    networks.write("a", b"network" * 100)
    file = next(tmp_path.iterdir())
    data = file.read_bytes()
    changed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "empty": b"",
        "longer": data + b"x",
        "foreign": b"X" + data[1:],
    }
    if damage == "renamed":
        networks.write("b", b"another")
        changed[damage] = next(tmp_path.glob("b.*")).read_bytes()
    file.write_bytes(changed[damage])
    assert networks.read("a") is None
    assert not networks.has("a")
    assert "damaged" in caplog.text


def test_those_that_were_not_read_for_longest_go(tmp_path: Path) -> None:
    """Beyond its space; what is wanted now stays, however large or old it is."""
    networks = CompiledNetworks(tmp_path, most_bytes=400)
    for age, key in enumerate("abcd"):
        networks.write(key, bytes(60))
        os.utime(next(tmp_path.glob(f"{key}.*")), ns=(age, age))
    networks.read("a")
    networks.prune(())
    assert [key for key in "abcd" if networks.has(key)] == list("abcd")
    networks.write("e", bytes(150))
    networks.prune("be")
    assert [key for key in "abcde" if networks.has(key)] == ["a", "b", "e"]
    networks.write("f", bytes(1000))
    networks.prune("bf")
    assert [key for key in "abcdef" if networks.has(key)] == ["b", "f"]


def test_a_disk_that_is_nearly_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What only saves time must not take what the audit and the ledger need, nor keep it."""
    CompiledNetworks(tmp_path).write("old", b"x")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert not CompiledNetworks(tmp_path, least_free=100).write("a", b"x")
    assert CompiledNetworks(tmp_path, least_free=99).write("a", b"x")
    assert "nearly full" in caplog.text
    full = CompiledNetworks(tmp_path, least_free=101)
    full.complete(["a", "b"], lambda *_: pytest.fail("started"), threading.Event(), deadline_s=WAIT_S)
    assert [full.has(key) for key in ("a", "old")] == [True, False]
    assert "compiles its networks itself" in caplog.text


def test_the_folder_keeps_to_its_space_before_more_is_made(tmp_path: Path) -> None:
    """Whatever became of earlier processes."""
    networks = CompiledNetworks(tmp_path, most_bytes=100)
    for key in "abc":
        networks.write(key, bytes(60))
    networks.complete(["c", "d"], lambda *_: None, threading.Event(), deadline_s=WAIT_S)
    assert [key for key in "abc" if networks.has(key)] == ["c"]


def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it raise: the network that was compiled serves."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "replace", fail)
    assert not CompiledNetworks(tmp_path).write("a", b"x")
    assert list(tmp_path.iterdir()) == []
    assert "not kept" in caplog.text


def test_a_folder_that_cannot_be_made_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is read, written or made, and it is said."""
    (tmp_path / "file").touch()
    networks = CompiledNetworks(tmp_path / "file" / "engines")
    assert networks.read("a") is None
    assert not networks.write("a", b"x")
    never = threading.Event()
    networks.complete(["a"], lambda *_: pytest.fail("nobody could read what this makes"), never, deadline_s=5.0)
    assert "compiled by every replica" in caplog.text


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    """With the time that is left; nothing where all are there."""
    networks = CompiledNetworks(tmp_path)
    networks.write("b", b"x")
    asked: list[tuple[Sequence[int], float]] = []
    for keys in (["a", "b", "c"], ["b"]):
        networks.complete(keys, lambda *given: asked.append(given), threading.Event(), deadline_s=5.0)
    ((missing, left),) = asked
    assert list(missing) == [0, 2]
    assert 0.0 < left <= 5.0


def test_of_many_that_want_the_same_one_makes_it(tmp_path: Path) -> None:
    """The others wait until it is there."""
    made: list[str] = []
    start = threading.Barrier(4, timeout=WAIT_S)

    def want(_: int) -> bool:
        networks = CompiledNetworks(tmp_path)

        def make(missing: Sequence[int], left: float) -> None:
            assert (missing, left > 0) == ([0], True)
            made.append("a")
            networks.write("a", b"x")

        start.wait()
        networks.complete(["a"], make, threading.Event(), deadline_s=WAIT_S)
        return networks.has("a")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(want, range(4))) == [True] * 4
    assert made == ["a"]


@pytest.mark.parametrize("ending", ["deadline", "abandoned"])
def test_nobody_waits_longer_than_it_pays(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where another makes it for too long, it is compiled here; what nobody wants is not waited for at all."""
    abandoned = threading.Event()
    limit = 0.05
    if ending == "abandoned":
        abandoned.set()
        limit = 600.0
    with filelock.FileLock(tmp_path / "lock"):
        CompiledNetworks(tmp_path).complete(["a"], lambda *_: pytest.fail("no turn"), abandoned, deadline_s=limit)
    assert ("another process compiles" in caplog.text) == (ending == "deadline")


def test_with_no_time_left_nothing_is_started(tmp_path: Path) -> None:
    """It would only be killed."""
    never = threading.Event()
    CompiledNetworks(tmp_path).complete(["a"], lambda *_: pytest.fail("started"), never, deadline_s=module.LEAST_S / 2)


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """Before the next one is started, so that it never adds up; networks and the lock stay."""
    networks = CompiledNetworks(tmp_path)
    networks.write("b", b"x")
    (tmp_path / f"left{module.PART}").write_bytes(b"half")
    seen: list[list[str]] = []
    names = lambda *_: seen.append(sorted(path.suffix for path in tmp_path.iterdir()))  # noqa: E731 - one expression
    networks.complete(["a"], names, threading.Event(), deadline_s=WAIT_S)
    assert seen == [["", module.SUFFIX]]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_folder_of_somebody_else_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the system says when it is looked into; a root that runs these tests may look everywhere."""
    networks = CompiledNetworks(tmp_path)
    networks.write("a", b"x")

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("stat", "open", "mkdir"):
        monkeypatch.setattr(module.os if name == "stat" else module.Path, name, fail)
    assert not networks.has("a")
    assert networks.read("a") is None
    networks.complete(["a"], lambda *_: pytest.fail("started"), threading.Event(), deadline_s=WAIT_S)
    assert not networks.write("a", b"x")
    assert "compiled by every replica" in caplog.text


def test_a_file_whose_time_cannot_be_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be read-only."""
    networks = CompiledNetworks(tmp_path)
    networks.write("a", b"x")

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module.os, "utime", fail)
    assert networks.read("a") == b"x"
