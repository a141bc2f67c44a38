"""Changes of the access file: whole or not at all, one at a time, for this user's eyes only."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NoReturn

import pytest
from filelock import FileLock

from models.errors import InvalidOptionError
from serve import access_store
from serve.access import AccessKey, Scope, issue
from serve.access_document import AccessFileError, read_keys, render
from serve.access_store import added, edit, found

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEYS = [issue(name, {Scope.PREDICT}, 1000.0)[0] for name in ("first", "second")]


def test_the_file_is_made_for_this_user_only(tmp_path: Path) -> None:
    """File, folder and lock, whatever the umask lets through."""
    path = tmp_path / "home" / "access.json"
    edit(path, lambda keys: [*keys, KEYS[0]])
    edit(path, lambda keys: [*keys, KEYS[1]])
    assert read_keys(path) == tuple(KEYS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {each.name for each in path.parent.iterdir()} <= {"access.json", "access.json.lock"}


def test_a_change_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the change itself, or when the disk is full: the old keys stay, and no half file beside them."""
    path = tmp_path / "access.json"
    edit(path, lambda _: KEYS)

    def refuse(_: tuple[AccessKey, ...]) -> Sequence[AccessKey]:
        msg = "no"
        raise InvalidOptionError(msg)

    def full(_: int) -> NoReturn:
        raise OSError(28, "No space left on device")

    with pytest.raises(InvalidOptionError):
        edit(path, refuse)
    monkeypatch.setattr("serve.access_store.os.fsync", full)
    with pytest.raises(AccessFileError, match="No space left"):
        edit(path, lambda _: [])
    assert read_keys(path) == tuple(KEYS)
    assert {each.name for each in tmp_path.iterdir()} <= {"access.json", "access.json.lock"}


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    """What is in it may be all that there is."""
    path = tmp_path / "access.json"
    path.write_bytes(b"{")
    with pytest.raises(AccessFileError, match="damaged"):
        edit(path, lambda _: KEYS)
    assert path.read_bytes() == b"{"


def test_changes_at_once_all_count(tmp_path: Path) -> None:
    """Of many commands at the same time none loses its key."""
    path = tmp_path / "access.json"
    keys = [issue(f"key-{number}", {Scope.PREDICT}, 1000.0)[0] for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: edit(path, lambda known: added(known, key)), keys))
    assert set(read_keys(path) or ()) == set(keys)


def test_another_command_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs with the lock is told of."""
    monkeypatch.setattr(access_store, "LOCK_DEADLINE_S", 0.05)
    with FileLock(tmp_path / "access.json.lock"), pytest.raises(AccessFileError, match="another command"):
        edit(tmp_path / "access.json", lambda _: KEYS)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it names is replaced."""
    (tmp_path / "real.json").write_bytes(render([]))
    (tmp_path / "access.json").symlink_to("real.json")
    edit(tmp_path / "access.json", lambda _: KEYS)
    assert (tmp_path / "access.json").is_symlink()
    assert read_keys(tmp_path / "real.json") == tuple(KEYS)


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 65, "first", "ключ"])
def test_names_are_names_and_differ(name: str) -> None:
    """Logs and lists tell keys apart by them."""
    with pytest.raises(InvalidOptionError):
        added(KEYS, issue(name, {Scope.PREDICT}, 1000.0)[0])


def test_a_key_is_found_by_name_before_id() -> None:
    """A key may be named like the id of another."""
    sly = issue(KEYS[0].key_id, {Scope.PREDICT}, 1000.0)[0]
    assert found(KEYS, "second") is KEYS[1]
    assert found(KEYS, KEYS[1].key_id) is KEYS[1]
    assert found([*KEYS, sly], KEYS[0].key_id) is sly
    with pytest.raises(InvalidOptionError, match="access list"):
        found(KEYS, "third")
