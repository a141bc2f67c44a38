"""The keys in force follow the access file, and nothing that happens to it opens the service."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr

from serve import access_document, access_file
from serve.access import AccessKey, Scope, digest_of, issue
from serve.access_document import render
from serve.access_file import GONE, SLOW, AccessFile, key_of, keys_demanded
from serve.prometheus import PrometheusSink
from serve.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1000.0
FIRST, FIRST_TEXT = issue("first", {Scope.PREDICT}, NOW)
SECOND, SECOND_TEXT = issue("second", {Scope.PREDICT}, NOW)


def opens(file: AccessFile, text: str) -> bool | None:
    """Return whether ``text`` opens now; None where no keys are in force."""
    return None if file.keys is None else file.keys.find(text.encode(), NOW) is not None


def note_of(file: AccessFile) -> str | None:
    """Return the note as it is now."""
    return file.note


def put(path: Path, content: bytes) -> None:
    """Write the access file in place."""
    path.write_bytes(content)


def drop(path: Path) -> None:
    """Remove the access file."""
    path.unlink()


def link(path: Path, target: str) -> None:
    """Make the access file a link."""
    path.symlink_to(target)


def stat(path: Path) -> os.stat_result:
    """Return what the file system says of the access file."""
    return path.stat()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the access file is to be."""
    return tmp_path / "access.json"


async def test_a_file_that_appears_puts_keys_in_force(path: Path) -> None:
    """From the first look after it on; before, nobody needs one."""
    file = AccessFile(path, demanded=False)
    file.load()
    await file.look()
    assert (file.keys, file.note) == (None, None)
    put(path, render([FIRST]))
    await file.look()
    assert (opens(file, FIRST_TEXT), opens(file, SECOND_TEXT)) == (True, False)


async def test_an_empty_list_of_keys_lets_nobody_in(path: Path) -> None:
    """Revoking the last key must not open the service."""
    put(path, render([FIRST]))
    file = AccessFile(path, demanded=False)
    file.load()
    put(path, render([]))
    await file.look()
    assert opens(file, FIRST_TEXT) is False
    assert file.note is None


async def test_a_change_within_one_tick_of_the_clock_is_seen(path: Path) -> None:
    """Same file, same size, same time: only the content differs."""
    put(path, render([FIRST]))
    before = stat(path)
    file = AccessFile(path, demanded=False)
    file.load()
    twin = AccessKey(FIRST.key_id, FIRST.name, SECOND.digest, FIRST.scopes, FIRST.created)
    put(path, render([twin]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = stat(path)
    assert (after.st_size, after.st_ino, after.st_mtime_ns) == (before.st_size, before.st_ino, before.st_mtime_ns)
    await file.look()
    assert opens(file, FIRST_TEXT) is False


async def test_a_swapped_link_is_seen(tmp_path: Path, path: Path) -> None:
    """As Kubernetes changes a Secret: a link to a folder is replaced by one to another."""
    for name, key in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "access.json").write_bytes(render([key]))
    (tmp_path / "data").symlink_to("one")
    link(path, "data/access.json")
    file = AccessFile(path, demanded=True)
    file.load()
    assert opens(file, FIRST_TEXT) is True
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "data")
    await file.look()
    assert (opens(file, FIRST_TEXT), opens(file, SECOND_TEXT)) == (False, True)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}', None])
async def test_a_damaged_or_missing_file_keeps_the_last_good_keys(
    path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once in the log, always in the note and the metric, and takes the mended file over."""
    sink = PrometheusSink()
    put(path, render([FIRST]))
    file = AccessFile(path, demanded=False, sink=sink)
    file.load()
    assert b"steelyard_access_file_good 1.0" in sink.render()
    assert b"steelyard_access_keys 1.0" in sink.render()
    if damage is None:
        drop(path)
    else:
        put(path, damage)
    for _ in range(3):
        await file.look()
    assert opens(file, FIRST_TEXT) is True
    assert file.note is not None
    assert str(path) not in file.note
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert b"steelyard_access_file_good 0.0" in sink.render()
    put(path, render([SECOND]))
    await file.look()
    assert (opens(file, FIRST_TEXT), opens(file, SECOND_TEXT)) == (False, True)
    assert note_of(file) is None
    assert b"steelyard_access_file_good 1.0" in sink.render()


async def test_a_file_that_comes_back_unchanged_is_good_again(path: Path) -> None:
    """Gone and back between two looks or three, the keys are the same."""
    put(path, render([FIRST]))
    file = AccessFile(path, demanded=False)
    file.load()
    drop(path)
    await file.look()
    assert file.note == GONE
    put(path, render([FIRST]))
    await file.look()
    assert note_of(file) is None
    assert opens(file, FIRST_TEXT) is True


@pytest.mark.parametrize("demanded", [True, False])
def test_a_file_that_is_damaged_from_the_start_lets_nobody_in(path: Path, *, demanded: bool) -> None:
    """It was there, so keys were wanted."""
    put(path, b"{")
    file = AccessFile(path, demanded=demanded)
    file.load()
    assert opens(file, FIRST_TEXT) is False
    assert file.note is not None


def test_where_keys_are_demanded_a_missing_file_lets_nobody_in(path: Path) -> None:
    """But for the keys that are not in it: the one of the settings, and the launcher's own."""
    other = AccessKey("admin_key", "admin_key", digest_of("a"), frozenset({Scope.ADMIN}), 0.0)
    file = AccessFile(path, demanded=True, other=other, local=[SECOND])
    assert opens(file, FIRST_TEXT) is False
    file.load()
    assert [opens(file, text) for text in (FIRST_TEXT, SECOND_TEXT, "a")] == [False, True, True]
    assert file.note == GONE


async def test_a_disk_that_hangs_is_reported_and_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread waits, never two; damage that was known before is not forgotten by it."""
    put(path, render([FIRST]))
    file = AccessFile(path, demanded=False)
    file.load()
    put(path, b"{")
    await file.look()
    damage = file.note
    hang, calls = threading.Event(), []
    read = access_document.read

    def slow(where: Path) -> bytes | None:
        calls.append(where)
        hang.wait(30)
        return read(where)

    monkeypatch.setattr(access_file, "read", slow)
    monkeypatch.setattr(access_file, "LOOK_DEADLINE_S", 0.01)
    await file.look()
    await file.look()
    assert (file.note, len(calls), opens(file, FIRST_TEXT)) == (SLOW, 1, True)
    hang.set()
    monkeypatch.setattr(access_file, "LOOK_DEADLINE_S", 30.0)
    await file.look()
    assert file.note == damage


async def test_the_watch_looks_again_and_again(path: Path) -> None:
    """Every period, until it is cancelled."""
    waits: list[float] = []
    twice = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        put(path, render([FIRST]))
        if len(waits) == 3:
            twice.set()
            await asyncio.Event().wait()

    file = AccessFile(path, demanded=False, sleep=sleep)
    task = asyncio.create_task(file.watch())
    await asyncio.wait_for(twice.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waits == [access_file.PERIOD_S] * 3
    assert opens(file, FIRST_TEXT) is True


@pytest.mark.parametrize(
    ("settings", "demanded"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"admin_key": "k"}, False),
        ({"host": "10.0.0.1"}, True),
        ({"access_file": "keys.json"}, True),
        ({"host": "10.0.0.1", "anonymous_predict": True}, True),
    ],
)
def test_the_settings_say_whether_keys_must_be(settings: dict[str, Any], *, demanded: bool) -> None:
    """Beyond loopback, and where a file is named."""
    assert keys_demanded(Settings(**settings)) is demanded
    assert (AccessFile.of(Settings(**settings)).keys is not None) is demanded


def test_the_admin_key_of_the_settings_has_its_scope() -> None:
    """And no other."""
    assert key_of(Settings()) is None
    key = key_of(Settings(admin_key=SecretStr("correct horse")))
    assert key is not None
    assert key.scopes == {Scope.ADMIN}
    assert key.digest == digest_of("correct horse")
